"""The life of a connection: heartbeat, expiry, renewal."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import median

import pytest
from websockets.exceptions import ConnectionClosed

from functions.shared.messages import uuid7
from muster import Broadcaster
from tests.support.deployment import Deployment
from tests.support.fixtures import Figure, Open
from tests.support.sockets import SECONDS, Socket
from tests.support.waiting import until

SHORT = 4
"""Lifetime in seconds of a token whose expiry a test waits for."""

PAYLOAD = {"text": "hello"}


def _wait_for_the_end(seconds: float) -> None:
    """Wait until a token with this lifetime, made before the call, has expired."""
    # A second more, because ends are whole seconds.
    end = time.time() + seconds + 1
    until(lambda: time.time() > end, "the token's end", seconds + 2)


def _tell(broadcaster: Broadcaster, socket: Socket) -> tuple[str, int]:
    """Alert the socket's user; return the message's id and how many connections it was posted to."""
    execution = broadcaster.start("alert", {"users": [socket.user.user_id]}, PAYLOAD)
    receipt = broadcaster.wait(execution, 60)
    return receipt.id, receipt.audience


def test_ping_is_answered_in_under_100_ms(deployment: Deployment, open_socket: Open, figure: Figure) -> None:
    socket = open_socket(deployment.user())
    socket.ask({"action": "ping"})
    taken = []
    for _ in range(20):
        started = time.perf_counter()
        socket.ask({"action": "ping"})
        taken.append(time.perf_counter() - started)

    figure("Ping to pong, median of 20", median(taken), 0.1)


def test_pong_says_until_when_the_connection_lasts(deployment: Deployment, open_socket: Open) -> None:
    socket = open_socket(deployment.user(), seconds=600)

    pong = socket.ask({"action": "ping"})

    times = {name: datetime.fromisoformat(text) for name, text in pong.items() if name.endswith(("At", "By"))}
    assert abs(datetime.fromisoformat(pong["serverTime"]) - datetime.now(UTC)) < timedelta(seconds=5)
    assert abs(times["expiresAt"] - times["connectedAt"] - timedelta(seconds=600)) < timedelta(seconds=5)
    assert times["reconnectBy"] - times["connectedAt"] == timedelta(hours=2) - timedelta(minutes=5)
    assert pong["idleTimeoutSeconds"] == 600
    row = deployment.connection(socket.connection_id)
    assert row is not None
    assert row["lastSeenAt"] > row["connectedAt"]


def test_connection_with_an_expired_token_receives_nothing_and_gets_an_error_and_is_closed(
    deployment: Deployment, broadcaster: Broadcaster, open_socket: Open
) -> None:
    socket = open_socket(deployment.user(), seconds=SHORT)
    assert socket.ask({"action": "ping"})["type"] == "pong"
    _wait_for_the_end(SHORT)

    _, audience = _tell(broadcaster, socket)
    error = socket.ask({"action": "ping", "id": "late"})

    assert audience == 0
    assert (error["type"], error["code"], error["replyTo"]) == ("error", "unknown_connection", "late")
    assert socket.received == []
    with pytest.raises(ConnectionClosed):
        socket.connection.recv(timeout=SECONDS)


def test_unknown_connection_gets_an_error_and_is_closed(deployment: Deployment, open_socket: Open) -> None:
    socket = open_socket(deployment.user())
    deployment.forget_connections([socket.connection_id])

    error = socket.ask({"action": "ping"})

    assert error["code"] == "unknown_connection"
    with pytest.raises(ConnectionClosed):
        socket.connection.recv(timeout=SECONDS)


def test_renewed_connection_outlives_its_first_token(
    deployment: Deployment, broadcaster: Broadcaster, open_socket: Open
) -> None:
    socket = open_socket(deployment.user(), seconds=SHORT)

    renewed = socket.ask({"action": "renew", "token": deployment.token(socket.user.user_id, 600)})

    assert renewed["type"] == "renewed"
    left = datetime.fromisoformat(renewed["expiresAt"]) - datetime.now(UTC)
    assert abs(left - timedelta(seconds=600)) < timedelta(seconds=5)
    _wait_for_the_end(SHORT)
    message, audience = _tell(broadcaster, socket)
    assert audience == 1
    assert [heard["id"] for heard in socket.heard()] == [message]
    assert socket.ask({"action": "ping"})["expiresAt"] == renewed["expiresAt"]


@pytest.mark.parametrize("whose", ["garbage", "expired", "another-users"])
def test_invalid_token_renews_nothing(deployment: Deployment, open_socket: Open, whose: str) -> None:
    socket = open_socket(deployment.user(), seconds=600)
    before = socket.ask({"action": "ping"})["expiresAt"]
    token = {
        "garbage": "garbage",
        "expired": deployment.token(socket.user.user_id, -1),
        "another-users": deployment.token(deployment.user().user_id),
    }[whose]

    error = socket.ask({"action": "renew", "token": token})

    assert (error["type"], error["code"]) == ("error", "token_invalid")
    assert token not in str(error)
    assert socket.ask({"action": "ping"})["expiresAt"] == before


def test_user_made_inactive_loses_the_connection_at_a_renewal(
    deployment: Deployment, open_socket: Open
) -> None:
    socket = open_socket(deployment.user())
    users = deployment.tables.Table(deployment.outputs.users_table)
    users.put_item(Item={**socket.user.item(), "active": False})

    error = socket.ask({"action": "renew", "token": deployment.token(socket.user.user_id)})

    assert error["code"] == "forbidden"
    with pytest.raises(ConnectionClosed):
        socket.connection.recv(timeout=SECONDS)


def test_renewal_applies_the_users_current_role_and_shelter(
    deployment: Deployment, broadcaster: Broadcaster, open_socket: Open, shelter: str
) -> None:
    socket = open_socket(deployment.user("resident", shelter))
    opened = socket.ask({"action": "ping"})
    assert (opened["role"], opened["shelterId"]) == ("resident", shelter)
    now = replace(socket.user, role="first_responder", shelter_id=f"{shelter}-new")
    deployment.tables.Table(deployment.outputs.users_table).put_item(Item=now.item())
    missed = broadcaster.wait(broadcaster.start("alert", {"shelters": [f"{shelter}-new"]}, PAYLOAD), 60)
    assert missed.audience == 0

    renewed = socket.ask({"action": "renew", "token": deployment.token(socket.user.user_id)})

    assert (renewed["role"], renewed["shelterId"]) == ("first_responder", f"{shelter}-new")
    after = uuid7(datetime.fromisoformat(opened["connectedAt"]).timestamp(), bytes(10))
    resumed = socket.ask({"action": "resume", "after": after})
    assert missed.id in [message["id"] for message in resumed["messages"]]
    for target, audience in (({"shelters": [f"{shelter}-new"]}, 1), ({"shelters": [shelter]}, 0)):
        receipt = broadcaster.wait(broadcaster.start("alert", target, PAYLOAD), 60)
        assert receipt.audience == audience
    assert socket.ask({"action": "alert", "target": {"shelters": [shelter]}, "payload": {}})["type"] == "ack"
