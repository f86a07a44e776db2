import json

import pytest

from functions import disconnect
from functions.shared.connections import Connections
from tests.support.fake_aws import DynamoDB
from tests.support.functions import Context, event
from tests.unit.functions.conftest import Logs


@pytest.fixture(autouse=True)
def wired(dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """`disconnect` works with the fake table, which holds two connections."""
    connections = Connections(dynamodb.client, "connections")
    monkeypatch.setattr(disconnect, "connections", lambda: connections)
    dynamodb.add("connections", {"connectionId": "c1="}, {"connectionId": "c2="})


def test_the_connection_that_closed_is_forgotten_and_no_other(
    dynamodb: DynamoDB, context: Context, logs: Logs
) -> None:
    assert disconnect.handler(event(kind="DISCONNECT"), context) == {"statusCode": 200}
    assert dynamodb.rows("connections") == [{"connectionId": "c2="}]
    line, metrics = logs()
    assert line["connectionId"] == "c1="
    assert metrics["ConnectionsClosed"] == [1]


def test_a_connection_that_is_unknown_is_no_error(dynamodb: DynamoDB, context: Context, logs: Logs) -> None:
    for _ in range(2):
        assert disconnect.handler(event(kind="DISCONNECT"), context) == {"statusCode": 200}


@pytest.mark.filterwarnings("ignore:No application metrics")
def test_a_message_that_names_the_route_forgets_nothing(
    dynamodb: DynamoDB, context: Context, logs: Logs
) -> None:
    answer = disconnect.handler(event({"action": "$disconnect"}), context)
    assert answer["statusCode"] == 400
    assert json.loads(answer["body"])["code"] == "unknown_action"
    assert len(dynamodb.rows("connections")) == 2
