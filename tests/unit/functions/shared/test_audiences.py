import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.shared.audiences import audience_keys, partitions, queries
from functions.shared.connections import Connections, User
from tests.support.fake_aws import DynamoDB
from tests.support.functions import properties

SHARDS = 3
NOW = int(time.time())


@pytest.mark.parametrize(
    ("target", "keys", "parts"),
    [
        ({"all": True}, ["all"], ["all all#0", "all all#1", "all all#2"]),
        (
            {"roles": ["admin", "resident"]},
            ["role#admin", "role#resident"],
            [f"role {role}#{shard}" for role in ("admin", "resident") for shard in range(SHARDS)],
        ),
        ({"shelters": ["s1", "s2"]}, ["shelter#s1", "shelter#s2"], ["shelter s1", "shelter s2"]),
        ({"users": ["u1"]}, ["user#u1"], ["user u1"]),
        (
            {"users": ["u1"], "shelters": ["s1"], "roles": ["admin"]},
            ["role#admin", "shelter#s1", "user#u1"],
            ["role admin#0", "role admin#1", "role admin#2", "shelter s1", "user u1"],
        ),
    ],
)
def test_a_target_expands_to_its_audience_keys_and_partitions(
    target: dict[str, Any], keys: list[str], parts: list[str]
) -> None:
    assert audience_keys(target) == keys
    assert [f"{part['scope']} {part['value']}" for part in partitions(target, SHARDS)] == parts


def test_a_query_projects_what_delivery_needs_and_skips_expired_rows() -> None:
    assert queries({"roles": ["admin"]}) == {
        "role": {
            "IndexName": "RoleIndex",
            "KeyConditionExpression": "#key = :key",
            "FilterExpression": "#ttl > :now",
            "ProjectionExpression": "connectionId, userId, connectedAt",
            "ExpressionAttributeNames": {"#key": "roleShard", "#ttl": "ttl"},
            "ExpressionAttributeValues": {},
        }
    }


def names(*values: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, unique=True)


ROLES, SHELTERS, USERS = ("admin", "resident", "medic"), ("s1", "s2", "s3"), ("u1", "u2", "u3", "u4")
TARGETS = st.just({"all": True}) | st.fixed_dictionaries(
    {}, optional={"roles": names(*ROLES), "shelters": names(*SHELTERS), "users": names(*USERS)}
).filter(bool)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(USERS),
        st.sampled_from(ROLES),
        st.sampled_from([None, *SHELTERS]),
        st.sampled_from([NOW + 3600, NOW + 3600, NOW - 1]),
    ),
    max_size=12,
)
Row = tuple[str, str, str | None, int]


def meant(target: dict[str, Any], row: Row) -> bool:
    """Whether a connection belongs to the audience of a target, as the contract defines it."""
    user, role, shelter, ttl = row
    named = (
        "all" in target
        or role in target.get("roles", ())
        or shelter in target.get("shelters", ())
        or user in target.get("users", ())
    )
    return named and ttl > NOW


def query_all(dynamodb: DynamoDB, target: dict[str, Any]) -> Counter[str]:
    """How often the queries of a target's partitions find each connection, run as in the fan-out."""
    found: Counter[str] = Counter()
    by_scope = queries(target)
    for partition in partitions(target, SHARDS):
        query = by_scope[partition["scope"]]
        values = {":key": {"S": partition["value"]}, ":now": {"N": str(NOW)}}
        query = query | {"ExpressionAttributeValues": query["ExpressionAttributeValues"] | values}
        answer = dynamodb.client.query(TableName="connections", **query)
        found.update(item["connectionId"]["S"] for item in answer["Items"])
        assert all(set(item) == {"connectionId", "userId", "connectedAt"} for item in answer["Items"])
    return found


@properties
@given(target=TARGETS, rows=ROWS)
def test_every_connection_of_the_audience_is_in_exactly_one_partition(
    target: dict[str, Any], rows: Sequence[Row], dynamodb: DynamoDB
) -> None:
    dynamodb.empty()
    connections = Connections(dynamodb.client, "connections")
    for number, (user, role, shelter, ttl) in enumerate(rows):
        owner = User(user_id=user, email="e@example.org", role=role, shelter_id=shelter)
        connections.put(f"c{number}", owner, NOW, ttl, SHARDS)
    expected = {f"c{number}": 1 for number, row in enumerate(rows) if meant(target, row)}
    assert query_all(dynamodb, target) == expected


def test_dynamodb_accepts_the_query_of_a_target_with_the_most_names(dynamodb: DynamoDB) -> None:
    target = {
        "roles": [f"r{n}" for n in range(100)],
        "shelters": [f"s{n}" for n in range(100)],
        "users": ["u1"],
    }
    connections = Connections(dynamodb.client, "connections")
    owner = User(user_id="u1", email="e@example.org", role="other", shelter_id="other")
    connections.put("c1", owner, NOW, NOW + 60, SHARDS)
    assert query_all(dynamodb, target) == {"c1": 1}
