"""The `connections` and `users` tables: who is connected, and who may be."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

from botocore.exceptions import ClientError

from functions.shared.errors import UnknownConnection, UserRefused, aws_code

Item = dict[str, dict[str, Any]]

HANDSHAKE_SECONDS = 10
"""`$connect` stores the row before API Gateway opens the socket. A connection younger than this may answer
410 for that reason alone: the post is repeated, and the row is kept."""


def iso(epoch_seconds: float) -> str:
    """An instant as clients see it: ISO 8601, UTC, milliseconds."""
    return (
        datetime.fromtimestamp(epoch_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def epoch(instant: str) -> float:
    """The epoch seconds of an ISO 8601 instant."""
    return datetime.fromisoformat(instant).timestamp()


@dataclass(frozen=True)
class User:
    """A row of the `users` table that may connect."""

    user_id: str
    email: str | None
    role: str
    shelter_id: str | None


@dataclass(frozen=True)
class Connection:
    """A live WebSocket and whose it is; `expires_at` is in epoch seconds, `connected_at` in ISO 8601."""

    connection_id: str
    user_id: str
    role: str
    shelter_id: str | None
    connected_at: str
    expires_at: int


class Users:
    """Reads the `users` table."""

    def __init__(self, dynamodb: Any, table: str) -> None:
        """`dynamodb` is a low-level client."""
        self._dynamodb = dynamodb
        self._table = table

    def active(self, user_id: str) -> User:
        """The user, read consistently. Raises `UserRefused` for the unknown and the inactive."""
        answer = self._dynamodb.get_item(
            TableName=self._table, Key={"userId": {"S": user_id}}, ConsistentRead=True
        )
        item: Item | None = answer.get("Item")
        if item is None:
            raise UserRefused("unknown")
        if item.get("active", {}).get("BOOL") is not True:
            raise UserRefused("inactive")
        text = {name: value["S"] for name, value in item.items() if value.get("S")}
        if "role" not in text:
            raise UserRefused("without a role")
        return User(user_id, text.get("email"), text["role"], text.get("shelterId"))


class Connections:
    """Reads and writes single rows of the `connections` table. Rows past their ttl count as absent."""

    def __init__(self, dynamodb: Any, table: str) -> None:
        """`dynamodb` is a low-level client."""
        self._dynamodb = dynamodb
        self._table = table

    def put(self, connection_id: str, user: User, now: float, expires_at: int, shards: int) -> None:
        """Store a new connection, written to one of `shards` partitions of the role and all audiences."""
        shard = crc32(connection_id.encode()) % shards
        item: Item = {
            "connectionId": {"S": connection_id},
            "userId": {"S": user.user_id},
            "role": {"S": user.role},
            "roleShard": {"S": f"{user.role}#{shard}"},
            "shard": {"S": f"all#{shard}"},
            "connectedAt": {"S": iso(now)},
            "lastSeenAt": {"S": iso(now)},
            "ttl": {"N": str(expires_at)},
        }
        if user.email:
            item["email"] = {"S": user.email}
        if user.shelter_id:
            item["shelterId"] = {"S": user.shelter_id}
        self._dynamodb.put_item(TableName=self._table, Item=item)

    def touch(self, connection_id: str, now: float) -> Connection:
        """The live connection, marked as seen `now`, in one write. Raises `UnknownConnection`."""
        return self._update(connection_id, now, "SET lastSeenAt = :seen", {":seen": {"S": iso(now)}})

    def extend(self, connection_id: str, now: float, expires_at: int) -> Connection:
        """Let a live connection last until `expires_at` (epoch seconds). Raises `UnknownConnection`."""
        return self._update(connection_id, now, "SET #ttl = :ttl", {":ttl": {"N": str(expires_at)}})

    def delete(self, connection_id: str) -> None:
        """Forget a connection; forgetting one that is unknown is no error."""
        self._dynamodb.delete_item(TableName=self._table, Key={"connectionId": {"S": connection_id}})

    def _update(self, connection_id: str, now: float, change: str, values: Item) -> Connection:
        try:
            answer = self._dynamodb.update_item(
                TableName=self._table,
                Key={"connectionId": {"S": connection_id}},
                UpdateExpression=change,
                ConditionExpression="#ttl > :now",
                ExpressionAttributeNames={"#ttl": "ttl"},
                ExpressionAttributeValues={":now": {"N": str(int(now))}, **values},
                ReturnValues="ALL_NEW",
            )
        except ClientError as error:
            if aws_code(error) == "ConditionalCheckFailedException":
                raise UnknownConnection from None
            raise
        item: Item = answer["Attributes"]
        return Connection(
            connection_id=connection_id,
            user_id=item["userId"]["S"],
            role=item["role"]["S"],
            shelter_id=item.get("shelterId", {}).get("S"),
            connected_at=item["connectedAt"]["S"],
            expires_at=int(item["ttl"]["N"]),
        )
