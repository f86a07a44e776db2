"""Reads the people of a deployment from its tables, and finds unknown names in a target."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from muster.outputs import Outputs

SCANNED_PAGES = 10
"""How many pages of the users table, of 1 MB each, are read to find the members of a role or a shelter."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """A row of the users table, and whether the user has an open connection."""

    id: str
    role: str | None
    shelter: str | None
    active: bool
    connected: bool


def people(outputs: Outputs) -> Iterator[Person]:
    """Read the users table lazily, in DynamoDB's order, with one query of the connections for each person."""
    dynamodb = outputs.resource("dynamodb")
    connections = dynamodb.Table(outputs.connections_table)
    for page in _pages(dynamodb.Table(outputs.users_table).scan):
        for row in page["Items"]:
            yield Person(
                id=row["userId"],
                role=row.get("role"),
                shelter=row.get("shelterId"),
                active=row.get("active") is True,
                connected=_connected(connections, row["userId"]),
            )


def unknown_in(outputs: Outputs, target: Mapping[str, Any], shelter_id: str | None = None) -> list[str]:
    """Return a sentence for each role without active users, each unknown shelter and each unknown user.

    Roles and shelters are reported only if the users table fits SCANNED_PAGES pages. A role that the
    deployment does not have is not reported: the broadcast itself is refused.
    """
    dynamodb = outputs.resource("dynamodb")
    shelters = set(target.get("shelters", ()))
    if shelter_id is not None:
        shelters.add(shelter_id)
    users = _absent(dynamodb, outputs.users_table, "userId", set(target.get("users", ())))
    shelters = _absent(dynamodb, outputs.shelters_table, "shelterId", shelters)
    roles = set(target.get("roles", ()))
    complete = True
    if roles or shelters:
        table = dynamodb.Table(outputs.users_table)
        pages = _pages(
            table.scan,
            ProjectionExpression="#role, shelterId, active",
            ExpressionAttributeNames={"#role": "role"},
        )
        for page in islice(pages, SCANNED_PAGES):
            complete = "LastEvaluatedKey" not in page
            members = [row for row in page["Items"] if row.get("active") is True]
            roles -= {row.get("role") for row in members}
            shelters -= {row.get("shelterId") for row in members}
            if not roles and not shelters:
                break
    sentences = []
    if complete:
        sentences += [f"The role {role!r} has no active user." for role in sorted(roles)]
        sentences += [
            f"The shelter {shelter!r} is neither in the table {outputs.shelters_table} nor that of a user."
            for shelter in sorted(shelters)
        ]
    sentences += [f"The user {user!r} is not in the table {outputs.users_table}." for user in sorted(users)]
    return sentences


def _absent(dynamodb: Any, table: str, key: str, wanted: Collection[str]) -> set[str]:
    """Return the keys that a table does not have. Keys that DynamoDB left unprocessed count as present."""
    absent = set(wanted)
    names = sorted(wanted)
    for start in range(0, len(names), 100):  # the limit of BatchGetItem [DynamoDB API reference]
        request = {"Keys": [{key: name} for name in names[start : start + 100]], "ProjectionExpression": key}
        answer = dynamodb.batch_get_item(RequestItems={table: request})
        unread = answer.get("UnprocessedKeys", {}).get(table, {}).get("Keys", [])
        absent -= {row[key] for row in [*answer["Responses"].get(table, []), *unread]}
    return absent


def _connected(connections: Any, user_id: str) -> bool:
    query = {
        "IndexName": "UserIndex",
        "KeyConditionExpression": "userId = :user",
        "FilterExpression": "#ttl > :now",
        "ExpressionAttributeNames": {"#ttl": "ttl"},
        "ExpressionAttributeValues": {":user": user_id, ":now": int(time.time())},
        "Select": "COUNT",
    }
    return any(page["Count"] for page in _pages(connections.query, **query))


def _pages(read: Any, **arguments: Any) -> Iterator[Mapping[str, Any]]:
    page = read(**arguments)
    yield page
    while "LastEvaluatedKey" in page:
        page = read(**arguments, ExclusiveStartKey=page["LastEvaluatedKey"])
        yield page
