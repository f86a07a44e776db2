"""The tables and indexes that Terraform made, and how fast they answer."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from tests.support.deployment import Deployment, unique
from tests.support.fixtures import Figure

FANOUT_ATTRIBUTES = {"connectedAt", "role", "shelterId", "ttl", "userId"}


def _schema(keys: list[dict[str, str]]) -> dict[str, str]:
    return {key["KeyType"]: key["AttributeName"] for key in keys}


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("connections", {"HASH": "connectionId"}),
        ("users", {"HASH": "userId"}),
        ("messages", {"HASH": "audience", "RANGE": "messageId"}),
        ("shelters", {"HASH": "shelterId"}),
    ],
)
def test_table_has_its_key_and_is_encrypted_on_demand_and_recoverable(
    deployment: Deployment, table: str, key: dict[str, str]
) -> None:
    name = getattr(deployment.outputs, f"{table}_table")
    described = deployment.dynamodb.describe_table(TableName=name)["Table"]
    backups = deployment.dynamodb.describe_continuous_backups(TableName=name)["ContinuousBackupsDescription"]

    assert _schema(described["KeySchema"]) == key
    assert described["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    # The key that DynamoDB owns: AWS leaves the description out, MiniStack shows the setting.
    assert described.get("SSEDescription", {}).get("Status", "DISABLED") == "DISABLED"
    assert backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] == "ENABLED"


@pytest.mark.parametrize(
    ("index", "key", "attributes"),
    [
        ("UserIndex", "userId", None),
        ("RoleIndex", "roleShard", FANOUT_ATTRIBUTES),
        ("ShelterIndex", "shelterId", FANOUT_ATTRIBUTES - {"shelterId"}),
        ("AllIndex", "shard", FANOUT_ATTRIBUTES),
    ],
)
def test_connections_can_be_found_by_every_scope(
    deployment: Deployment, index: str, key: str, attributes: set[str] | None
) -> None:
    described = deployment.dynamodb.describe_table(TableName=deployment.outputs.connections_table)["Table"]
    indexes = {found["IndexName"]: found for found in described["GlobalSecondaryIndexes"]}

    assert _schema(indexes[index]["KeySchema"]) == {"HASH": key}
    projection = indexes[index]["Projection"]
    assert projection["ProjectionType"] == ("INCLUDE" if attributes else "ALL")
    assert set(projection.get("NonKeyAttributes", ())) == (attributes or set())


@pytest.mark.parametrize("table", ["connections", "messages"])
def test_rows_expire_by_their_ttl(deployment: Deployment, table: str) -> None:
    name = getattr(deployment.outputs, f"{table}_table")
    described = deployment.dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert described == {"TimeToLiveStatus": "ENABLED", "AttributeName": "ttl"}


def test_shelters_stream_their_changes(deployment: Deployment) -> None:
    described = deployment.dynamodb.describe_table(TableName=deployment.outputs.shelters_table)["Table"]
    assert described["StreamSpecification"] == {
        "StreamEnabled": True,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    }


def test_single_item_operations_take_under_100_ms(deployment: Deployment, figure: Figure) -> None:
    table = deployment.tables.Table(deployment.outputs.users_table)
    user_id = unique("user")
    key = {"userId": user_id}
    operations: dict[str, Callable[[], Any]] = {
        "put": lambda: table.put_item(Item={**key, "role": "resident"}),
        "get": lambda: table.get_item(Key=key, ConsistentRead=True),
        "update": lambda: table.update_item(
            Key=key, UpdateExpression="SET email = :email", ExpressionAttributeValues={":email": "e"}
        ),
        "query an index": lambda: deployment.connections_of(user_id),
        "delete": lambda: table.delete_item(Key=key),
    }
    for name, operation in operations.items():
        operation()  # opens the HTTP connection
        taken = []
        for _ in range(20):
            started = time.perf_counter()
            operation()
            taken.append(time.perf_counter() - started)
        figure(f"DynamoDB {name}, median of 20", median(taken), 0.1)
