"""The `connections` and `users` tables: who is connected, and who may connect."""

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
"""The longest id of a user or shelter as JSON text in UTF-8, where `"` and `\\` take two bytes. With longer
ids, a page of connections would not fit into a state's 256 KiB [Step Functions quotas]."""

MAX_EMAIL_BYTES = 254
"""The longest mail address [RFC 5321 section 4.5.3, erratum 1690]."""

_ID = re.compile(r"[^\s#\x00-\x1f\x7f-\x9f\ufeff\ud800-\udfff]+")


def id_problem(value: Any) -> str | None:
    """What is wrong with the id of a user or shelter, or None.

    The rules are those of schemas/common.schema.json, and MAX_ID_BYTES, which a schema cannot express.
    """
    if not isinstance(value, str) or not value:
        return "is not a string, or is empty"
    if not _ID.fullmatch(value):
        return "contains white space, '#', a control character or half of a surrogate pair"
    size = len(json.dumps(value, ensure_ascii=False).encode()) - len('""')
    return f"takes {size} bytes, more than {MAX_ID_BYTES}" if size > MAX_ID_BYTES else None


@dataclass(frozen=True, kw_only=True)
class User:
    """An active user of the `users` table."""

    user_id: str
    email: str | None
    role: str
    shelter_id: str | None


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A live connection; `connected_at` is in ISO 8601, `expires_at` in epoch seconds."""

    connection_id: str
    user_id: str
    role: str
    shelter_id: str | None
    connected_at: str
    expires_at: int


class Users:
    """Reads the `users` table."""

    def __init__(self, dynamodb: Any, table: str, roles: Collection[str]) -> None:
        """`dynamodb` is a low-level client; `roles` are those of the deployment."""
        self._dynamodb = dynamodb
        self._table = table
        self._roles = roles

    def active(self, user_id: str) -> User:
        """The user, by a consistent read.

        Raises `UserRefused` for an unknown or inactive user, and for a row that breaks a rule: its reason
        names the attribute and the rule.
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
        role, shelter_id, email = _text(item, "role"), _text(item, "shelterId"), _text(item, "email")
        if not isinstance(role, str) or role not in self._roles:
            raise UserRefused("role is not a role of this deployment")
        if shelter_id is not None and (problem := id_problem(shelter_id)):
            raise UserRefused(f"shelterId {problem}")
        if email is not None and (not isinstance(email, str) or len(email.encode()) > MAX_EMAIL_BYTES):
            # No message is sent to this address, so the user may connect without it.
            problem = f"is not a string of at most {MAX_EMAIL_BYTES} bytes"
            logger.warning("email ignored", extra={"userId": user_id, "reason": f"email {problem}"})
            email = None
        return User(user_id=user_id, email=email, role=role, shelter_id=shelter_id)


class Connections:
    """Reads and writes single rows of the `connections` table. Rows past their ttl are treated as absent."""

    def __init__(self, dynamodb: Any, table: str) -> None:
        """`dynamodb` is a low-level client."""
        self._dynamodb = dynamodb
        self._table = table

    def put(self, connection_id: str, user: User, now: float, expires_at: int, shards: int) -> None:
        """Store a new connection that lasts until `expires_at` (epoch seconds)."""
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
        """The live connection, with `lastSeenAt` set to `now` in the same write.

        Raises `UnknownConnection` if there is no live row, or if the row breaks a rule: the detail names the
        attribute and the rule.
        """
        return self._update(connection_id, now, {"lastSeenAt": {"S": iso(now)}})

    def renew(self, connection_id: str, user: User, now: float, expires_at: int, shards: int) -> Connection:
        """Extend a live connection to `expires_at` (epoch seconds), with the user's role and shelter.

        In one write, so that the connection is never in a mix of old and new audiences. Raises
        `UnknownConnection`.
        """
        changes: Item = {
            "ttl": {"N": str(expires_at)},
            **index_attributes(connection_id, role=user.role, shelter_id=user.shelter_id, shards=shards),
        }
        return self._update(connection_id, now, changes, () if user.shelter_id else ("shelterId",))

    def expire(self, connection_id: str, now: float) -> None:
        """End a live connection `now`: set its ttl, so that its row is treated as absent."""
        self._update(connection_id, now, {"ttl": {"N": str(int(now))}})

    def delete(self, connection_id: str) -> None:
        """Delete a connection's row, if there is one."""
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
    user_id, role, shelter_id = _text(item, "userId"), _text(item, "role"), _text(item, "shelterId")
    connected_at = _text(item, "connectedAt")
    if problem := id_problem(user_id):
        raise UnknownConnection(f"invalid row: userId {problem}")
    if shelter_id is not None and (problem := id_problem(shelter_id)):
        raise UnknownConnection(f"invalid row: shelterId {problem}")
    if not isinstance(role, str):
        raise UnknownConnection("invalid row: role is not a string, or is empty")
    try:
        iso(epoch(connected_at))
    except (TypeError, ValueError, OverflowError):
        raise UnknownConnection("invalid row: connectedAt is not an ISO 8601 time") from None
    try:
        expires_at = int(item["ttl"]["N"])
        iso(expires_at)
    except (ValueError, OverflowError, OSError):
        raise UnknownConnection("invalid row: ttl is not in whole epoch seconds") from None
    return Connection(
        connection_id=connection_id,
        user_id=user_id,
        role=role,
        shelter_id=shelter_id,
        connected_at=connected_at,
        expires_at=expires_at,
    )


def _text(item: Item, name: str) -> Any:
    """The value of an attribute that should be a string; None if it is absent, null or empty."""
    value = item.get(name, {"NULL": True})
    return None if "NULL" in value else value.get("S", value) or None
