import json

import pytest

from functions import disconnect
from functions.shared.connections import Connections
from tests.support.fake_aws import DynamoDB
from tests.support.functions import Context, event
from tests.unit.functions.conftest import Logs


@pytest.fixture(autouse=True)
def wired(dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `disconnect` use the fake table, with two connections."""
    connections = Connections(dynamodb.client, "connections")
    monkeypatch.setattr(disconnect, "connections", lambda: connections)
    dynamodb.add("connections", {"connectionId": "c1="}, {"connectionId": "c2="})


def test_only_the_row_of_the_closed_connection_is_deleted(
    dynamodb: DynamoDB, context: Context, logs: Logs
) -> None:
    assert disconnect.handler(event(kind="DISCONNECT"), context) == {"statusCode": 200}
    assert dynamodb.rows("connections") == [{"connectionId": "c2="}]
    line, metrics = logs()
    assert line["connectionId"] == "c1="
    assert metrics["ConnectionsClosed"] == [1]


def test_an_unknown_connection_is_not_an_error(dynamodb: DynamoDB, context: Context, logs: Logs) -> None:
    for _ in range(2):
        assert disconnect.handler(event(kind="DISCONNECT"), context) == {"statusCode": 200}


@pytest.mark.filterwarnings("ignore:No application metrics")
def test_a_message_with_the_routes_name_as_its_action_deletes_nothing(
    dynamodb: DynamoDB, context: Context, logs: Logs
) -> None:
    answer = disconnect.handler(event({"action": "$disconnect"}), context)
    assert answer["statusCode"] == 400
    assert json.loads(answer["body"])["code"] == "unknown_action"
    assert len(dynamodb.rows("connections")) == 2
