"""The keys that connect a target with its people: of queued messages, and of connections.

A message is queued under the audience keys of its target, and a client reads the audience keys that it
belongs to. A connection is stored under the shards of its audiences, and a broadcast reads the partitions of
its target. Each pair of functions must agree, so both halves are here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

Target = Mapping[str, Any]


@dataclass(frozen=True)
class Index:
    """A scope's index on the `connections` table and the attribute that keys it."""

    name: str
    key: str


INDEXES = {
    "all": Index("AllIndex", "shard"),
    "role": Index("RoleIndex", "roleShard"),
    "shelter": Index("ShelterIndex", "shelterId"),
    "user": Index("UserIndex", "userId"),
}


def audience_keys(target: Target) -> list[str]:
    """The keys of the `messages` table under which a message for `target` is queued."""
    if "all" in target:
        return ["all"]
    return [
        _audience_key(scope, name)
        for scope in ("role", "shelter", "user")
        for name in target.get(f"{scope}s", ())
    ]


def audience_keys_of(*, user_id: str, role: str, shelter_id: str | None) -> list[str]:
    """The keys of the `messages` table whose messages are for this user."""
    keys = ["all", _audience_key("role", role), _audience_key("user", user_id)]
    return [*keys, _audience_key("shelter", shelter_id)] if shelter_id else keys


def partitions(target: Target, shards: int) -> list[dict[str, str]]:
    """Every index partition that contains connections of `target`, as {"scope", "value"}."""
    if "all" in target:
        return [{"scope": "all", "value": _shard_key("all", shard)} for shard in range(shards)]
    roles = [
        {"scope": "role", "value": _shard_key(role, shard)}
        for role in target.get("roles", ())
        for shard in range(shards)
    ]
    shelters = [{"scope": "shelter", "value": shelter} for shelter in target.get("shelters", ())]
    users = [{"scope": "user", "value": user} for user in target.get("users", ())]
    return roles + shelters + users


def index_attributes(
    connection_id: str, *, role: str, shelter_id: str | None, shards: int
) -> dict[str, dict[str, Any]]:
    """The attributes by which the indexes find a connection, as a DynamoDB item.

    A role and `all` are spread over `shards` partitions, because a partition takes 1,000 writes/s
    [DynamoDB limits].
    """
    shard = crc32(connection_id.encode()) % shards
    attributes = {
        "role": {"S": role},
        "roleShard": {"S": _shard_key(role, shard)},
        "shard": {"S": _shard_key("all", shard)},
    }
    return {**attributes, "shelterId": {"S": shelter_id}} if shelter_id else attributes


def queries(target: Target) -> dict[str, dict[str, Any]]:
    """The DynamoDB Query of each scope that `target` names, without the values `:key` and `:now`.

    Scopes overlap: a first responder may also be one of the named users. Each query leaves out the
    connections that a wider scope of the same target includes, so that every connection is read once.

    Every query skips rows that have expired but are not deleted yet, and projects only what delivery needs.
    `IN` takes at most 100 operands, which is why a target names at most 100 roles and 100 shelters
    [DynamoDB, Expressions in condition and filter].
    """
    wider: dict[str, Sequence[tuple[str, str]]] = {
        "all": [],
        "role": [],
        "shelter": [("role", "roles")],
        "user": [("role", "roles"), ("shelterId", "shelters")],
    }
    scopes = ["all"] if "all" in target else [s for s in ("role", "shelter", "user") if f"{s}s" in target]
    return {scope: _query(INDEXES[scope], target, wider[scope]) for scope in scopes}


def _query(index: Index, target: Target, covered: Sequence[tuple[str, str]]) -> dict[str, Any]:
    conditions = ["#ttl > :now"]
    names = {"#key": index.key, "#ttl": "ttl"}
    values: dict[str, dict[str, str]] = {}
    for attribute, field in covered:
        if field in target:
            operands = {f":{attribute}{n}": {"S": name} for n, name in enumerate(target[field])}
            conditions.append(f"NOT (#{attribute} IN ({', '.join(operands)}))")
            names[f"#{attribute}"] = attribute
            values |= operands
    return {
        "IndexName": index.name,
        "KeyConditionExpression": "#key = :key",
        "FilterExpression": " AND ".join(conditions),
        "ProjectionExpression": "connectionId, userId, connectedAt",
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
    }


def _audience_key(scope: str, name: str) -> str:
    return f"{scope}#{name}"


def _shard_key(name: str, shard: int) -> str:
    return f"{name}#{shard}"
