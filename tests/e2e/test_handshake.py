"""Who gets a WebSocket, and how the token may travel."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import jwt
import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from tests.support.deployment import ORIGIN, Deployment, unique
from tests.support.fixtures import Figure, Open
from tests.support.sockets import Socket, websocket
from tests.support.waiting import until

REFUSED: list[tuple[str, Callable[[Deployment, str], dict[str, Any]]]] = [
    ("no-token", lambda stack, user: {}),
    ("garbage", lambda stack, user: {"token": "garbage"}),
    ("expired", lambda stack, user: {"token": stack.token(user, seconds=-1)}),
    ("wrong-signature", lambda stack, user: {"token": jwt.encode(stack.claims(user), "x" * 64, "HS256")}),
    ("alg-none", lambda stack, user: {"token": jwt.encode(stack.claims(user), "", "none")}),
    ("wrong-issuer", lambda stack, user: {"token": stack.token(user, iss="somebody")}),
    ("wrong-audience", lambda stack, user: {"token": stack.token(user, aud="something")}),
    ("garbage-in-the-query", lambda stack, user: {"query": "?Authorization=garbage"}),
    ("subprotocol-without-token", lambda stack, user: {"subprotocols": [Subprotocol("muster")]}),
]


@pytest.mark.parametrize("options", [pytest.param(case[1], id=case[0]) for case in REFUSED])
def test_handshake_without_a_valid_token_is_refused(
    deployment: Deployment, options: Callable[[Deployment, str], dict[str, Any]]
) -> None:
    user_id = deployment.user().user_id

    _assert_refused(deployment, user_id, HTTPStatus.UNAUTHORIZED, options(deployment, user_id))


def test_inactive_user_is_refused(deployment: Deployment) -> None:
    user_id = deployment.user(active=False).user_id

    _assert_refused(deployment, user_id, HTTPStatus.FORBIDDEN, {"token": deployment.token(user_id)})


def test_unknown_user_is_refused(deployment: Deployment) -> None:
    user_id = unique("nobody")

    _assert_refused(deployment, user_id, HTTPStatus.FORBIDDEN, {"token": deployment.token(user_id)})


def test_page_of_another_site_is_refused(deployment: Deployment) -> None:
    user_id = deployment.user().user_id
    options = {"token": deployment.token(user_id), "origin": "https://elsewhere.example.org"}

    _assert_refused(deployment, user_id, HTTPStatus.FORBIDDEN, options)


def test_page_of_an_allowed_site_is_admitted(deployment: Deployment) -> None:
    user = deployment.user()

    with websocket(deployment, deployment.token(user.user_id), origin=Origin(ORIGIN)) as connection:
        (connection_id,) = deployment.connections_of(user.user_id)
        assert Socket(user, connection, connection_id).ask({"action": "ping"})["type"] == "pong"
    until(lambda: not deployment.connection(connection_id), "the end of the connection")


def _assert_refused(
    deployment: Deployment, user_id: str, status: HTTPStatus, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidStatus) as refusal, websocket(deployment, **options):
        pass
    assert refusal.value.response.status_code == status
    assert deployment.connections_of(user_id) == []


@pytest.mark.parametrize("way", ["query", "header", "subprotocols"])
def test_token_is_accepted_from_every_place(deployment: Deployment, way: str) -> None:
    user = deployment.user()
    token = deployment.token(user.user_id)
    ways: dict[str, dict[str, Any]] = {
        "query": {"query": f"?Authorization={token}"},
        "header": {"token": token},
        "subprotocols": {"subprotocols": [Subprotocol("muster"), Subprotocol(token)]},
    }

    with websocket(deployment, **ways[way]) as connection:
        (connection_id,) = deployment.connections_of(user.user_id)
        socket = Socket(user, connection, connection_id)
        assert socket.ask({"action": "ping"})["type"] == "pong"
        # A browser closes a socket whose server selects none of the subprotocols that it offered.
        assert connection.subprotocol == ("muster" if way == "subprotocols" else None)
    until(lambda: not deployment.connection(connection_id), "the end of the connection")


def test_handshake_takes_under_two_seconds(deployment: Deployment, open_socket: Open, figure: Figure) -> None:
    slowest = max(open_socket(deployment.user()).handshake_seconds for _ in range(10))

    figure("Handshake, slowest of 10", slowest, 2)


def test_closing_a_connection_deletes_its_row(deployment: Deployment, open_socket: Open) -> None:
    socket = open_socket(deployment.user())
    assert deployment.connection(socket.connection_id)

    socket.close()

    until(lambda: not deployment.connection(socket.connection_id), "the row's end")
