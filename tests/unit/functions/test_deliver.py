import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from functions import deliver
from functions.shared.instants import iso
from functions.shared.posting.gateway import Pace, Posted, Recipient
from tests.support.functions import Context
from tests.support.loopback import Answer, Endpoint, answer, gateway_to, scripted
from tests.support.schemas import conforming
from tests.unit.functions.conftest import Logs

MESSAGE_ID = "0190a6b2-7f00-7000-8000-000000000000"
ENVELOPE = '{"type":"alert","payload":{"text":"the bridge is closed é🌍"}}'
GONE, BROKEN, THROTTLED = answer(410), answer(403), answer(429)

SCRIPTS: dict[str, list[Answer]] = {
    "gone=": [GONE],
    "broken=": [BROKEN],
    "slow=": [THROTTLED, answer(200)],
}

pytestmark = pytest.mark.usefixtures("no_waiting")


def batch(*connection_ids: str) -> dict[str, Any]:
    """A `delivery-batch`."""
    connected_at = iso(time.time() - 60)
    made: dict[str, Any] = {
        "messageId": MESSAGE_ID,
        "type": "alert",
        "envelope": ENVELOPE,
        "connections": [
            {"connectionId": name, "userId": f"user of {name}", "connectedAt": connected_at}
            for name in connection_ids
        ],
    }
    return conforming("delivery-batch", made)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(scripted(SCRIPTS)) as served:
        yield served


@pytest.fixture
def run(
    endpoint: Endpoint,
    context: Context,
    logs: Logs,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Invoke the handler with a batch of these connections."""
    with gateway_to(endpoint.url) as opened:
        monkeypatch.setattr(deliver, "gateway", lambda: opened)

        def run(*connection_ids: str) -> dict[str, Any]:
            result = deliver.handler(batch(*connection_ids), context)
            return conforming("delivery-result", result)

        yield run


def test_every_connection_gets_the_envelope_and_is_reported_once(
    run: Callable[..., dict[str, Any]], endpoint: Endpoint
) -> None:
    result = run("c1=", "gone=", "c2=", "broken=", "slow=")
    assert result == {
        "delivered": 3,
        "gone": 1,
        "failed": 1,
        "retries": 2,
        "undelivered": [
            {"connectionId": "gone=", "userId": "user of gone=", "reason": "gone"},
            {"connectionId": "broken=", "userId": "user of broken=", "reason": "failed"},
        ],
    }
    assert {request.body.decode() for request in endpoint.requests} == {ENVELOPE}


def test_counts_are_logged_and_are_metrics_without_the_payload(
    run: Callable[..., dict[str, Any]], logs: Logs
) -> None:
    run("c1=", "gone=", "broken=", "slow=")
    line, metrics = logs()
    assert {key: line[key] for key in ("messageId", "delivered", "gone", "failed", "retries")} == {
        "messageId": MESSAGE_ID,
        "delivered": 2,
        "gone": 1,
        "failed": 1,
        "retries": 2,
    }
    names = ("Delivered", "Gone", "Failed", "Retries", "Throttled")
    assert [metrics[name] for name in names] == [[2], [1], [1], [2], [1]]
    assert metrics["DeliveryLatency"][0] >= line["milliseconds"] - 1
    assert "bridge" not in json.dumps([line, metrics])


A_TIME = "2026-11-25T08:00:00.000Z"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"userId": "u1"}, "connectedAt is missing or not an ISO 8601 time"),
        ({"userId": "u1", "connectedAt": "yesterday"}, "connectedAt is missing or not an ISO 8601 time"),
        ({"userId": "u1", "connectedAt": ""}, "connectedAt is missing or not an ISO 8601 time"),
        ({"userId": "u1", "connectedAt": 1795421402}, "connectedAt is missing or not an ISO 8601 time"),
        ({"userId": "u1", "connectedAt": None}, "connectedAt is missing or not an ISO 8601 time"),
        ({"connectedAt": A_TIME}, "userId is missing or not a string"),
        ({"userId": "", "connectedAt": A_TIME}, "userId is missing or not a string"),
        ({"userId": 17, "connectedAt": A_TIME}, "userId is missing or not a string"),
        ({"userId": ["u1"], "connectedAt": A_TIME}, "userId is missing or not a string"),
        ({}, "userId is missing or not a string"),
    ],
    ids=str,
)
def test_a_malformed_row_fails_alone_and_is_logged(
    row: dict[str, Any],
    problem: str,
    context: Context,
    logs: Logs,
    run: Callable[..., dict[str, Any]],
    endpoint: Endpoint,
) -> None:
    given = batch("c1=", "c2=")
    given["connections"].insert(1, {"connectionId": "odd=", **row})
    result = conforming("delivery-result", deliver.handler(given, context))
    known = {"userId": "u1"} if row.get("userId") == "u1" else {}
    assert result == {
        "delivered": 2,
        "gone": 0,
        "failed": 1,
        "retries": 0,
        "undelivered": [{"connectionId": "odd=", "reason": "failed", **known}],
    }
    assert endpoint.posts_to("odd=") == 0
    report, line, metrics = logs()
    assert (report["level"], report["rows"]) == ("ERROR", {"odd=": problem})
    assert (line["failed"], metrics["Failed"]) == (1, [1])


@pytest.mark.parametrize("pace", [None, {"rate": 12.5, "credit": 3}])
def test_the_gateway_gets_the_pace_and_the_remaining_time_less_the_reserve(
    context: Context, logs: Logs, monkeypatch: pytest.MonkeyPatch, pace: dict[str, float] | None
) -> None:
    given: list[tuple[float, Pace | None]] = []

    class Watched:
        def post(
            self, recipients: list[Recipient], body: bytes, deadline: float, pace: Pace | None
        ) -> Posted:
            given.append((deadline - time.monotonic(), pace))
            return Posted([(who, "failed") for who in recipients])

    monkeypatch.setattr(deliver, "gateway", Watched)
    context.remaining = 30_000
    request = batch("c1=", "c2=") | ({"pace": pace} if pace else {})
    assert deliver.handler(conforming("delivery-batch", request), context)["failed"] == 2
    ((seconds, passed_on),) = given
    assert seconds == pytest.approx(28.5, abs=0.5)
    assert passed_on == (Pace(**pace) if pace else None)


def test_without_time_left_nothing_is_posted_and_all_fail(
    run: Callable[..., dict[str, Any]], context: Context, endpoint: Endpoint
) -> None:
    context.remaining = deliver.REPORT_MILLISECONDS - 1
    assert run("c1=", "gone=")["failed"] == 2
    assert endpoint.requests == []
