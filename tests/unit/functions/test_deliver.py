import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from functions import deliver
from functions.shared import gateway
from functions.shared.connections import Connections, iso
from functions.shared.gateway import Gateway, Pace, Posted, Recipient
from tests.schemas import conforming

from .aws import DynamoDB
from .conftest import Logs
from .loopback import Answer, Endpoint, answer, gateway_to, scripted
from .support import Context

MESSAGE_ID = "0190a6b2-7f00-7000-8000-000000000000"
ENVELOPE = '{"type":"alert","payload":{"text":"the bridge is closed é🌍"}}'
GONE, BROKEN, THROTTLED = answer(410), answer(403), answer(429)

SCRIPTS: dict[str, list[Answer]] = {
    "gone=": [GONE],
    "young=": [GONE],
    "broken=": [BROKEN],
    "slow=": [THROTTLED, answer(200)],
}

pytestmark = pytest.mark.usefixtures("no_waiting")


def batch(*connection_ids: str) -> dict[str, Any]:
    """A `delivery-batch`; a connection named young is in its handshake."""
    now = time.time()
    made: dict[str, Any] = {
        "messageId": MESSAGE_ID,
        "type": "alert",
        "envelope": ENVELOPE,
        "connections": [
            {
                "connectionId": name,
                "userId": f"user of {name}",
                "connectedAt": iso(now if name == "young=" else now - 60),
            }
            for name in connection_ids
        ],
    }
    return conforming("delivery-batch", made)  # type: ignore[no-any-return]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(scripted(SCRIPTS)) as served:
        yield served


@pytest.fixture
def run(
    endpoint: Endpoint,
    dynamodb: DynamoDB,
    context: Context,
    logs: Logs,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Deliver to connections, all of which have a row."""
    with gateway_to(endpoint.url) as opened:
        dependencies = deliver.Dependencies(opened, Connections(dynamodb.client, "connections"))
        monkeypatch.setattr(deliver, "dependencies", lambda: dependencies)

        def run(*connection_ids: str) -> dict[str, Any]:
            dynamodb.add("connections", *({"connectionId": name} for name in connection_ids))
            result = deliver.handler(batch(*connection_ids), context)
            return conforming("delivery-result", result)  # type: ignore[no-any-return]

        yield run


def left(dynamodb: DynamoDB) -> list[str]:
    return [row["connectionId"] for row in dynamodb.rows("connections")]


def test_every_connection_is_posted_the_envelope_and_reported_once(
    run: Callable[..., dict[str, Any]], endpoint: Endpoint
) -> None:
    result = run("c1=", "gone=", "c2=", "broken=", "slow=")
    assert result == {
        "delivered": 3,
        "gone": 1,
        "failed": 1,
        "retries": 1,
        "undelivered": [
            {"connectionId": "gone=", "userId": "user of gone=", "reason": "gone"},
            {"connectionId": "broken=", "userId": "user of broken=", "reason": "failed"},
        ],
    }
    assert {request.body.decode() for request in endpoint.requests} == {ENVELOPE}


def test_the_rows_of_gone_connections_are_deleted_and_no_others(
    run: Callable[..., dict[str, Any]], dynamodb: DynamoDB
) -> None:
    run("c1=", "gone=", "c2=", "broken=")
    assert left(dynamodb) == ["c1=", "c2=", "broken="]


def test_a_connection_that_may_still_be_opening_keeps_its_row(
    run: Callable[..., dict[str, Any]], dynamodb: DynamoDB
) -> None:
    result = run("young=", "gone=")
    assert (result["gone"], left(dynamodb)) == (2, ["young="])


def test_a_connection_that_has_opened_by_the_end_of_a_long_batch_keeps_its_row(
    run: Callable[..., dict[str, Any]], dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its 410 came during the handshake, and says nothing about what it is now."""
    post = Gateway.post

    def outlast(*arguments: Any) -> Posted:
        posted = post(*arguments)
        monkeypatch.setattr(gateway, "HANDSHAKE_SECONDS", 0)
        return posted

    monkeypatch.setattr(Gateway, "post", outlast)
    result = run("young=", "gone=")
    assert (result["gone"], left(dynamodb)) == (2, ["young="])


def test_a_row_that_cannot_be_deleted_is_logged_and_the_delivery_stands(
    run: Callable[..., dict[str, Any]], dynamodb: DynamoDB, logs: Logs
) -> None:
    dynamodb.failing.add("DeleteItem")
    result = run("c1=", "gone=")
    assert (result["delivered"], result["gone"]) == (1, 1)
    warning, info, _ = logs()
    assert (warning["level"], warning["message"]) == ("WARNING", "rows of gone connections kept")
    assert (info["level"], info["gone"]) == ("INFO", 1)


def test_counts_are_logged_and_measured_without_the_payload(
    run: Callable[..., dict[str, Any]], logs: Logs
) -> None:
    run("c1=", "gone=", "broken=", "slow=")
    line, metrics = logs()
    assert {key: line[key] for key in ("messageId", "delivered", "gone", "failed", "retries")} == {
        "messageId": MESSAGE_ID,
        "delivered": 2,
        "gone": 1,
        "failed": 1,
        "retries": 1,
    }
    names = ("Delivered", "Gone", "Failed", "Retries", "Throttled")
    assert [metrics[name] for name in names] == [[2], [1], [1], [1], [1]]
    assert metrics["DeliveryLatency"][0] >= line["milliseconds"] - 1
    assert "bridge" not in json.dumps([line, metrics])


@pytest.mark.parametrize("pace", [None, {"rate": 12.5, "credit": 3}])
def test_the_gateway_is_given_the_batchs_pace_and_the_time_but_for_the_reports(
    context: Context, logs: Logs, monkeypatch: pytest.MonkeyPatch, pace: dict[str, float] | None
) -> None:
    given: list[tuple[float, Pace | None]] = []

    class Watched:
        def post(
            self, recipients: list[Recipient], body: bytes, deadline: float, pace: Pace | None
        ) -> Posted:
            given.append((deadline - time.monotonic(), pace))
            return Posted([(who, "failed") for who in recipients])

    using: Any = deliver.Dependencies(Watched(), None)  # type: ignore[arg-type]
    monkeypatch.setattr(deliver, "dependencies", lambda: using)
    context.remaining = 30_000
    request = batch("c1=", "c2=") | ({"pace": pace} if pace else {})
    assert deliver.handler(conforming("delivery-batch", request), context)["failed"] == 2
    ((seconds, passed_on),) = given
    assert seconds == pytest.approx(26, abs=1)
    assert passed_on == (Pace(**pace) if pace else None)


def test_without_time_left_nothing_is_posted_and_everybody_is_reported(
    run: Callable[..., dict[str, Any]], context: Context, endpoint: Endpoint, dynamodb: DynamoDB
) -> None:
    context.remaining = deliver.REPORT_MILLISECONDS - 1
    assert run("c1=", "gone=")["failed"] == 2
    assert endpoint.requests == []
    assert left(dynamodb) == ["c1=", "gone="]
