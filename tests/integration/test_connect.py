"""`connect`, invoked as API Gateway would: who is admitted, who is not, and what the log says of it."""

import json
import time
from collections.abc import Callable

import jwt
import pytest

from tests.support.deployment import Deployment, unique
from tests.support.handshakes import assert_refused, handshake

MakeToken = Callable[[Deployment, str], str | None]


def _unsigned(deployment: Deployment, user_id: str) -> str:
    return jwt.encode(deployment.claims(user_id), "", "none")


def _tampered(deployment: Deployment, user_id: str) -> str:
    """Return a token for the user with the signature of another's."""
    header, payload, _ = deployment.token(user_id).split(".")
    return ".".join((header, payload, deployment.token("somebody-else").split(".")[2]))


TOKENS: list[tuple[str, MakeToken, str]] = [
    ("none", lambda stack, user: None, "missing"),
    ("empty", lambda stack, user: "", "missing"),
    ("garbage", lambda stack, user: "garbage", "malformed"),
    ("garbage-in-three-parts", lambda stack, user: "garbage1.garbage2.garbage3", "malformed"),
    ("expired", lambda stack, user: stack.token(user, seconds=-1), "expired"),
    ("no-expiry", lambda stack, user: stack.token(user, exp=None), "claims"),
    ("other-secret", lambda stack, user: jwt.encode(stack.claims(user), "x" * 64, "HS256"), "signature"),
    ("tampered", _tampered, "signature"),
    ("alg-none", _unsigned, "algorithm"),
    (
        "other-algorithm",
        lambda stack, user: jwt.encode(stack.claims(user), stack.jwt_secret, "HS512"),
        "algorithm",
    ),
    ("wrong-issuer", lambda stack, user: stack.token(user, iss="somebody"), "claims"),
    ("wrong-audience", lambda stack, user: stack.token(user, aud="something"), "claims"),
    ("no-subject", lambda stack, user: stack.token(user, sub=None), "claims"),
]


@pytest.mark.parametrize(("make", "reason"), [pytest.param(*case[1:], id=case[0]) for case in TOKENS])
def test_invalid_token_is_refused_with_401(deployment: Deployment, make: MakeToken, reason: str) -> None:
    token = make(deployment, deployment.user().user_id)

    connection_id, answer = handshake(deployment, query=token)

    assert_refused(deployment, connection_id, answer, 401, f"TokenRefused: {reason}", token or "")


@pytest.mark.parametrize("known", [True, False])
def test_user_who_may_not_connect_is_refused_with_403(deployment: Deployment, known: bool) -> None:
    user_id = deployment.user(active=False).user_id if known else unique("nobody")
    token = deployment.token(user_id)

    connection_id, answer = handshake(deployment, query=token)

    reason = "UserRefused: inactive" if known else "UserRefused: unknown"
    assert_refused(deployment, connection_id, answer, 403, reason, token)


@pytest.mark.parametrize(
    ("role", "shelter_id", "reason"),
    [
        ("wizard", None, "role is not a role of this deployment"),
        (
            "resident",
            "north hall",
            "shelterId contains white space, '#', a control character or half of a surrogate pair",
        ),
        ("resident", "世" * 43, "shelterId takes 129 bytes, more than 128"),
    ],
)
def test_user_whose_row_breaks_a_rule_is_refused_with_403(
    deployment: Deployment, role: str, shelter_id: str | None, reason: str
) -> None:
    token = deployment.token(deployment.user(role, shelter_id).user_id)

    connection_id, answer = handshake(deployment, query=token)

    assert_refused(deployment, connection_id, answer, 403, f"UserRefused: {reason}", token)


def test_token_whose_subject_is_not_a_valid_user_id_is_refused_with_403(deployment: Deployment) -> None:
    token = deployment.token("x" * 3_000)

    connection_id, answer = handshake(deployment, query=token)

    assert_refused(
        deployment, connection_id, answer, 403, "UserRefused: userId takes 3000 bytes, more than 128", token
    )


@pytest.mark.parametrize("way", ["query", "query-with-bearer", "header", "subprotocols"])
def test_token_is_accepted_from_every_place(deployment: Deployment, shelter: str, way: str) -> None:
    user = deployment.user("first_responder", shelter)
    token = deployment.token(user.user_id)
    arguments = {
        "query": {"query": token},
        "query-with-bearer": {"query": f"Bearer {token}"},
        "header": {"header": f"Bearer {token}"},
        "subprotocols": {"subprotocols": f"muster, {token}"},
    }[way]

    connection_id, answer = handshake(deployment, **arguments)

    selected = {"Sec-WebSocket-Protocol": "muster"} if way == "subprotocols" else {}
    assert answer.payload == {"statusCode": 200, "headers": selected}
    row = deployment.connection(connection_id)
    deployment.forget_connections([connection_id])
    assert row is not None
    shard = row["shard"].removeprefix("all#")
    assert (row["userId"], row["email"]) == (user.user_id, user.email)
    assert (row["role"], row["roleShard"]) == ("first_responder", f"first_responder#{shard}")
    assert row["shelterId"] == shelter
    assert token not in answer.log


def test_row_ends_with_the_token_or_after_a_day(deployment: Deployment) -> None:
    user_id = deployment.user().user_id
    seconds = []
    for lifetime in (600, 30 * 86400):
        connection_id, _ = handshake(deployment, query=deployment.token(user_id, lifetime))
        row = deployment.connection(connection_id)
        deployment.forget_connections([connection_id])
        assert row is not None
        seconds.append(int(row["ttl"]) - time.time())

    assert seconds == [pytest.approx(600, abs=5), pytest.approx(86400, abs=5)]


def test_frame_that_names_the_connect_route_stores_nothing(deployment: Deployment) -> None:
    connection_id = unique("connection")
    event = {"requestContext": {"connectionId": connection_id, "eventType": "MESSAGE"}, "body": "{}"}

    answer = deployment.invoke("connect", event)

    assert json.loads(answer.payload["body"])["code"] == "unknown_action"
    assert deployment.connection(connection_id) is None
