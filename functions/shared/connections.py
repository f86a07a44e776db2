"""The `connections` and `users` tables: who is connected, and who may be."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from functions.shared.audiences import index_attributes
from functions.shared.errors import UnknownConnection, UserRefused, aws_code
from functions.shared.instants import epoch, iso
from functions.shared.telemetry import logger

Item = dict[str, dict[str, Any]]

MAX_ID_BYTES = 128
"""The most that a user's or shelter's id takes as JSON text in UTF-8, where `"` and `\\` take two bytes: with
longer ones, a page of connections would not fit a state's 256 KiB [Step Functions quotas]."""

MAX_EMAIL_BYTES = 254
"""The longest address that mail can be sent to [RFC 5321 section 4.5.3, erratum 1690]."""

_ID = re.compile(r"[^\s#\x00-\x1f\x7f-\x9f\ufeff\ud800-\udfff]+")


def id_problem(value: Any) -> str | None:
    """What is wrong with a user's or shelter's id, or None.

    The rule is that of schemas/common.schema.json, and MAX_ID_BYTES, which no schema can count.
    """
    if not isinstance(value, str) or not value:
        return "is not a string, or an empty one"
    if not _ID.fullmatch(value):
        return "holds white space, '#', a control character or half of a surrogate pair"
    size = len(json.dumps(value, ensure_ascii=False).encode()) - len('""')
    return f"takes {size} bytes, more than {MAX_ID_BYTES}" if size > MAX_ID_BYTES else None


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

    def __init__(self, dynamodb: Any, table: str, roles: Collection[str]) -> None:
        """`dynamodb` is a low-level client; `roles` are the deployment's."""
        self._dynamodb = dynamodb
        self._table = table
        self._roles = roles

    def active(self, user_id: str) -> User:
        """The user, read consistently.

        Raises `UserRefused` for the unknown, the inactive, and a row that breaks a rule; the reason names the
        attribute and the rule.
        """
        if problem := id_problem(user_id):
            raise UserRefused(f"userId {problem}")
        answer = self._dynamodb.get_item(
            TableName=self._table, Key={"userId": {"S": user_id}}, ConsistentRead=True
        )
        item: Item | None = answer.get("Item")
        if item is None:
            raise UserRefused("unknown")
        if item.get("active", {}).get("BOOL") is not True:
            raise UserRefused("inactive")
        role, shelter_id, email = (_text(item, name) for name in ("role", "shelterId", "email"))
        if not isinstance(role, str) or role not in self._roles:
            raise UserRefused("role is not a role of this deployment")
        if shelter_id is not None and (problem := id_problem(shelter_id)):
            raise UserRefused(f"shelterId {problem}")
        if email is not None and (not isinstance(email, str) or len(email.encode()) > MAX_EMAIL_BYTES):
            # Nothing is delivered by it, so it keeps nobody out.
            problem = f"is not a string of at most {MAX_EMAIL_BYTES} bytes"
            logger.warning("email left out", extra={"userId": user_id, "reason": f"email {problem}"})
            email = None
        return User(user_id, email, role, shelter_id)


class Connections:
    """Reads and writes single rows of the `connections` table. Rows past their ttl count as absent."""

    def __init__(self, dynamodb: Any, table: str) -> None:
        """`dynamodb` is a low-level client."""
        self._dynamodb = dynamodb
        self._table = table

    def put(self, connection_id: str, user: User, now: float, expires_at: int, shards: int) -> None:
        """Store a new connection, written to one of `shards` partitions of the role and all audiences."""
        item: Item = {
            "connectionId": {"S": connection_id},
            "userId": {"S": user.user_id},
            "connectedAt": {"S": iso(now)},
            "lastSeenAt": {"S": iso(now)},
            "ttl": {"N": str(expires_at)},
            **index_attributes(connection_id, role=user.role, shelter_id=user.shelter_id, shards=shards),
        }
        if user.email:
            item["email"] = {"S": user.email}
        self._dynamodb.put_item(TableName=self._table, Item=item)

    def touch(self, connection_id: str, now: float) -> Connection:
        """The live connection, marked as seen `now`, in one write.

        Raises `UnknownConnection`, also for an unusable row, with the attribute and the rule that it breaks.
        """
        return self._update(connection_id, now, {"lastSeenAt": {"S": iso(now)}})

    def renew(self, connection_id: str, user: User, now: float, expires_at: int, shards: int) -> Connection:
        """Let a live connection last until `expires_at` (epoch seconds), with the user's role and shelter.

        One write: the connection is always wholly in the old audiences or wholly in the new ones. Raises
        `UnknownConnection`.
        """
        changes: Item = {
            "ttl": {"N": str(expires_at)},
            **index_attributes(connection_id, role=user.role, shelter_id=user.shelter_id, shards=shards),
        }
        return self._update(connection_id, now, changes, () if user.shelter_id else ("shelterId",))

    def expire(self, connection_id: str, now: float) -> None:
        """Let a live connection end `now`: from here on its row counts as absent."""
        self._update(connection_id, now, {"ttl": {"N": str(int(now))}})

    def delete(self, connection_id: str) -> None:
        """Forget a connection; forgetting one that is unknown is no error."""
        self._dynamodb.delete_item(TableName=self._table, Key={"connectionId": {"S": connection_id}})

    def _update(
        self, connection_id: str, now: float, changes: Item, removed: Collection[str] = ()
    ) -> Connection:
        change = "SET " + ", ".join(f"#{name} = :{name}" for name in changes)
        if removed:
            change += " REMOVE " + ", ".join(f"#{name}" for name in removed)
        try:
            answer = self._dynamodb.update_item(
                TableName=self._table,
                Key={"connectionId": {"S": connection_id}},
                UpdateExpression=change,
                ConditionExpression="#ttl > :now",
                ExpressionAttributeNames={f"#{name}": name for name in {"ttl", *changes, *removed}},
                ExpressionAttributeValues={
                    ":now": {"N": str(int(now))},
                    **{f":{name}": value for name, value in changes.items()},
                },
                ReturnValues="ALL_NEW",
            )
        except ClientError as error:
            if aws_code(error) == "ConditionalCheckFailedException":
                raise UnknownConnection from None
            raise
        return _connection(connection_id, answer["Attributes"])


def _connection(connection_id: str, item: Item) -> Connection:
    user_id, role, shelter_id, connected_at = (
        _text(item, name) for name in ("userId", "role", "shelterId", "connectedAt")
    )
    if problem := id_problem(user_id):
        raise UnknownConnection(f"its row's userId {problem}")
    if shelter_id is not None and (problem := id_problem(shelter_id)):
        raise UnknownConnection(f"its row's shelterId {problem}")
    if not isinstance(role, str):
        raise UnknownConnection("its row's role is not a string, or an empty one")
    try:
        iso(epoch(connected_at))
    except (TypeError, ValueError, OverflowError):
        raise UnknownConnection("its row's connectedAt is not an ISO 8601 instant") from None
    try:
        expires_at = int(item["ttl"]["N"])
        iso(expires_at)
    except (ValueError, OverflowError, OSError):
        raise UnknownConnection("its row's ttl is not in whole epoch seconds") from None
    return Connection(connection_id, user_id, role, shelter_id, connected_at, expires_at)


def _text(item: Item, name: str) -> Any:
    """An attribute that should be a string; None when it is absent, null or empty."""
    value = item.get(name, {"NULL": True})
    return None if "NULL" in value else value.get("S", value) or None
