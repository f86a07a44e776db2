"""From a target to the audience keys it is recorded under and the index partitions it is delivered to.

The scopes overlap: a first responder may also be one of the named users. So that a connection is read once
only, a scope's query leaves out the rows that a wider scope of the same target already covers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """The keys of the `messages` table under which a message for `target` waits for those who are offline."""
    if "all" in target:
        return ["all"]
    return [
        f"{scope}#{name}" for scope in ("role", "shelter", "user") for name in target.get(f"{scope}s", ())
    ]


def partitions(target: Target, shards: int) -> list[dict[str, str]]:
    """Every index partition that holds connections of `target`, as {"scope", "value"}."""
    if "all" in target:
        return [{"scope": "all", "value": f"all#{shard}"} for shard in range(shards)]
    roles = [
        {"scope": "role", "value": f"{role}#{shard}"}
        for role in target.get("roles", ())
        for shard in range(shards)
    ]
    shelters = [{"scope": "shelter", "value": shelter} for shelter in target.get("shelters", ())]
    users = [{"scope": "user", "value": user} for user in target.get("users", ())]
    return roles + shelters + users


def queries(target: Target) -> dict[str, dict[str, Any]]:
    """The DynamoDB Query of each scope that `target` names, but for the values `:key` and `:now`.

    Every query passes over rows that have expired and that DynamoDB has yet to delete, and projects only what
    delivery needs. `IN` takes at most 100 operands, which is why a target names at most 100 roles and
    100 shelters [DynamoDB, Expressions in condition and filter].
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
            places = {f":{attribute}{n}": {"S": name} for n, name in enumerate(target[field])}
            conditions.append(f"NOT (#{attribute} IN ({', '.join(places)}))")
            names[f"#{attribute}"] = attribute
            values |= places
    return {
        "IndexName": index.name,
        "KeyConditionExpression": "#key = :key",
        "FilterExpression": " AND ".join(conditions),
        "ProjectionExpression": "connectionId, userId, connectedAt",
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
    }
