import json
import time
from dataclasses import replace
from typing import Any
from unittest.mock import Mock
from zlib import crc32

import pytest

from functions import connect
from functions.shared import settings
from functions.shared.connections import Connections, Users
from functions.shared.errors import KeysUnavailable
from functions.shared.tokens import Verifier
from tests.support.fake_aws import DynamoDB, SecretsManager
from tests.support.functions import ROLES, SECRET, Context, event, leaks, token
from tests.unit.functions.conftest import Logs

ROW = {"userId": "u1", "email": "u1@example.org", "role": "resident", "active": True}
TTL = 1_000


def using(dynamodb: DynamoDB, **changes: Any) -> connect.Dependencies:
    jwt = {"jwt_algorithms": ("HS256",), "jwt_secret_arn": "arn:secret"}
    config = settings.Connect(
        jwt_issuer="muster",
        jwt_audience="muster",
        connections_table="connections",
        users_table="users",
        roles=ROLES,
        connection_ttl_seconds=TTL,
        audience_shards=4,
        **jwt | changes,
    )
    return connect.Dependencies(
        settings=config,
        verifier=Verifier(config, SecretsManager(SECRET).client),
        users=Users(dynamodb.client, "users", ROLES),
        connections=Connections(dynamodb.client, "connections"),
    )


@pytest.fixture(autouse=True)
def wired(dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `connect` use the fake tables, with an active and an inactive user."""
    dependencies = using(dynamodb)
    monkeypatch.setattr(connect, "dependencies", lambda: dependencies)
    dynamodb.add("users", ROW, ROW | {"userId": "off", "active": False})
    dynamodb.add("users", {"userId": "odd", "email": "o@example.org", "role": "resident"})


def handshake(presented: str | None, **fields: Any) -> dict[str, Any]:
    query = {"Authorization": presented} if presented is not None else None
    return event(kind="CONNECT", queryStringParameters=query, **fields)


@pytest.mark.parametrize(
    ("presented", "status", "reason"),
    [
        (None, 401, "TokenRefused: missing"),
        ("garbage", 401, "TokenRefused: malformed"),
        (token(exp=int(time.time()) - 10), 401, "TokenRefused: expired"),
        (token(key="a secret that is not the one of the server"), 401, "TokenRefused: signature"),
        (token(key="", algorithm="none"), 401, "TokenRefused: algorithm"),
        (token(iss="another"), 401, "TokenRefused: claims"),
        (token(aud="another"), 401, "TokenRefused: claims"),
        (token("nobody"), 403, "UserRefused: unknown"),
        (token("off"), 403, "UserRefused: inactive"),
        (token("odd"), 403, "UserRefused: inactive"),
    ],
    ids=[
        "no token",
        "garbage",
        "expired",
        "signature",
        "alg none",
        "iss",
        "aud",
        "unknown user",
        "inactive user",
        "user neither active nor inactive",
    ],
)
def test_a_refused_client_leaves_no_row_and_a_log_line_with_the_reason_and_no_token(
    presented: str | None, status: int, reason: str, dynamodb: DynamoDB, context: Context, logs: Logs
) -> None:
    assert connect.handler(handshake(presented), context) == {"statusCode": status}
    assert dynamodb.rows("connections") == []
    line, metrics = logs()
    assert (line["level"], line["reason"], line["connectionId"]) == ("WARNING", reason, "c1=")
    assert metrics["ConnectionsRefused"] == [1]
    assert not leaks(presented or "", json.dumps([line, metrics]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"role": "wizard"}, "role is not a role of this deployment"),
        ({"role": ""}, "role is not a role of this deployment"),
        ({"role": 7}, "role is not a role of this deployment"),
        ({"shelterId": 7}, "shelterId is not a string"),
        ({"shelterId": "north hall"}, "shelterId contains white space"),
        ({"shelterId": "a#b"}, "shelterId contains white space, '#'"),
        ({"shelterId": "a\x07b"}, "shelterId contains white space, '#', a control character"),
        ({"shelterId": "世" * 43}, "shelterId takes 129 bytes, more than 128"),
        ({"active": "true"}, "inactive"),
    ],
)
def test_a_user_row_that_breaks_a_rule_is_refused_with_the_rule(
    change: dict[str, Any], reason: str, dynamodb: DynamoDB, context: Context, logs: Logs
) -> None:
    dynamodb.add("users", ROW | change)
    assert connect.handler(handshake(token()), context) == {"statusCode": 403}
    assert dynamodb.rows("connections") == []
    line = logs()[0]
    assert line["userId"] == "u1"
    assert line["reason"].startswith(f"UserRefused: {reason}")


@pytest.mark.parametrize("sub", ["x" * 3_000, "世" * 43, "a b", "a#b", "a\x07", "\ud800"])
def test_a_signed_sub_that_is_not_a_valid_id_is_refused(
    sub: str, dynamodb: DynamoDB, context: Context, logs: Logs
) -> None:
    assert connect.handler(handshake(token(sub)), context) == {"statusCode": 403}
    line = logs()[0]
    assert line["reason"].startswith("UserRefused: userId ")
    assert "userId" not in line
    assert dynamodb.calls == []


@pytest.mark.parametrize("email", [7, "x" * 255])
def test_an_invalid_email_is_ignored(email: Any, dynamodb: DynamoDB, context: Context, logs: Logs) -> None:
    dynamodb.add("users", ROW | {"email": email, "shelterId": ""})
    assert connect.handler(handshake(token()), context)["statusCode"] == 200
    (row,) = dynamodb.rows("connections")
    assert not {"email", "shelterId"} & row.keys()
    assert logs()[0]["reason"].startswith("email is not")


@pytest.mark.parametrize(
    ("header", "origin"),
    [
        ("Origin", "https://evil.example.org"),
        ("origin", "https://evil.example.org"),
        ("Origin", "http://app.example.org"),
        ("Origin", "https://app.example.org:8443"),
        ("Origin", "https://app.example.org.evil.example"),
        ("Origin", "null"),  # the origin of a sandboxed frame
        ("Origin", ""),
    ],
)
def test_a_page_of_another_site_is_refused_before_its_token_is_verified(
    header: str,
    origin: str,
    dynamodb: DynamoDB,
    context: Context,
    logs: Logs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dependencies = using(dynamodb, allowed_origins=("https://app.example.org", "https://b.example.org:8443"))
    monkeypatch.setattr(connect, "dependencies", lambda: dependencies)
    assert connect.handler(handshake(token(), headers={header: origin}), context) == {"statusCode": 403}
    line, metrics = logs()
    assert line["reason"].startswith("OriginRefused")
    assert origin in line["reason"]
    assert metrics["ConnectionsRefused"] == [1]
    assert dynamodb.calls == []


@pytest.mark.parametrize(
    ("allowed", "headers"),
    [
        (("https://app.example.org",), {"ORIGIN": "https://app.example.org"}),
        (
            ("https://a.example.org", "https://app.example.org:8443"),
            {"origin": "https://app.example.org:8443"},
        ),
        (("https://app.example.org",), {}),
        (("https://app.example.org",), None),
        ((), {"Origin": "https://anywhere.example.org"}),
    ],
    ids=["allowed", "allowed with a port", "no browser", "no headers", "every site allowed"],
)
def test_an_allowed_page_and_a_client_that_is_not_a_browser_may_connect(
    allowed: tuple[str, ...],
    headers: dict[str, str] | None,
    dynamodb: DynamoDB,
    context: Context,
    logs: Logs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dependencies = using(dynamodb, allowed_origins=allowed)
    monkeypatch.setattr(connect, "dependencies", lambda: dependencies)
    assert connect.handler(handshake(token(), headers=headers), context)["statusCode"] == 200


def test_an_hmac_token_is_refused_if_key_pairs_are_configured(
    dynamodb: DynamoDB, context: Context, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = "http://127.0.0.1:9/jwks.json"
    key_pairs = using(dynamodb, jwt_algorithms=("RS256",), jwt_secret_arn=None, jwt_jwks_url=unreachable)
    monkeypatch.setattr(connect, "dependencies", lambda: key_pairs)
    assert connect.handler(handshake(token()), context) == {"statusCode": 401}
    assert logs()[0]["reason"] == "TokenRefused: algorithm"
    assert dynamodb.rows("connections") == []


def test_a_handshake_fails_without_a_refusal_while_keys_cannot_be_read(
    dynamodb: DynamoDB, context: Context, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = Mock(verify=Mock(side_effect=KeysUnavailable("https://id.example.org: down")))
    without_keys = replace(using(dynamodb), verifier=unreachable)
    monkeypatch.setattr(connect, "dependencies", lambda: without_keys)
    assert connect.handler(handshake(token()), context) == {"statusCode": 500}
    assert "https://id.example.org: down" in json.dumps(logs()[0])
    assert dynamodb.rows("connections") == []


def test_a_connection_is_stored_until_its_time_to_live_ends(
    dynamodb: DynamoDB, context: Context, logs: Logs
) -> None:
    before = time.time()
    assert connect.handler(handshake(token()), context) == {"statusCode": 200, "headers": {}}
    after = time.time()
    (row,) = dynamodb.rows("connections")
    shard = crc32(b"c1=") % 4
    assert int(before) + TTL <= row.pop("ttl") <= int(after) + TTL
    connected_at = row.pop("connectedAt")
    assert row.pop("lastSeenAt") == connected_at
    stamps = (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) for moment in (before, after))
    assert connected_at[:19] in stamps
    assert (connected_at[19], connected_at[23:]) == (".", "Z")
    assert row == {
        "connectionId": "c1=",
        "userId": "u1",
        "email": "u1@example.org",
        "role": "resident",
        "roleShard": f"resident#{shard}",
        "shard": f"all#{shard}",
    }
    (metrics,) = logs()
    assert metrics["ConnectionsOpened"] == [1]


def test_a_row_expires_with_its_token(dynamodb: DynamoDB, context: Context, logs: Logs) -> None:
    end = int(time.time()) + TTL - 500
    connect.handler(handshake(token(exp=end)), context)
    assert dynamodb.rows("connections")[0]["ttl"] == end


def test_the_shelter_of_a_user_is_stored(dynamodb: DynamoDB, context: Context, logs: Logs) -> None:
    dynamodb.add("users", ROW | {"shelterId": "s1"})
    connect.handler(handshake(token()), context)
    assert dynamodb.rows("connections")[0]["shelterId"] == "s1"


def test_connections_are_spread_over_all_shards(dynamodb: DynamoDB, context: Context, logs: Logs) -> None:
    for number in range(100):
        request = handshake(token())
        request["requestContext"]["connectionId"] = f"c{number}="
        connect.handler(request, context)
    shards = [row["shard"] for row in dynamodb.rows("connections")]
    assert {shards.count(f"all#{shard}") > 10 for shard in range(4)} == {True}
    assert len(shards) == 100


def test_the_response_selects_the_subprotocol(context: Context, logs: Logs) -> None:
    request = event(kind="CONNECT", headers={"Sec-WebSocket-Protocol": f"muster, {token()}"})
    assert connect.handler(request, context) == {
        "statusCode": 200,
        "headers": {"Sec-WebSocket-Protocol": "muster"},
    }


def test_the_user_is_read_consistently(dynamodb: DynamoDB, context: Context, logs: Logs) -> None:
    connect.handler(handshake(token()), context)
    assert [call["ConsistentRead"] for call in dynamodb.called("GetItem")] == [True]


@pytest.mark.filterwarnings("ignore:No application metrics")
def test_a_message_with_the_routes_name_as_its_action_is_not_a_handshake(
    dynamodb: DynamoDB, context: Context, logs: Logs
) -> None:
    request = event({"action": "$connect"}, queryStringParameters={"Authorization": token()})
    answer = connect.handler(request, context)
    assert answer["statusCode"] == 400
    assert json.loads(answer["body"])["code"] == "unknown_action"
    assert dynamodb.calls == []


def test_an_unexpected_failure_is_500_and_its_cause_is_only_logged(
    dynamodb: DynamoDB, context: Context, logs: Logs
) -> None:
    dynamodb.failing.add("GetItem")
    presented = token()
    assert connect.handler(handshake(presented), context) == {"statusCode": 500}
    line, metrics = logs()
    assert line["message"] == "connection failed"
    assert metrics["ConnectionsFailed"] == [1]
    assert "the disk of host 10.0.0.7 is full" in line["exception"]
    assert not leaks(presented, json.dumps(line))
    assert dynamodb.rows("connections") == []
