"""Fixtures of the end-to-end tests: WebSockets, which are closed after the test."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from muster import Broadcaster
from muster.local.seed import User
from tests.support.deployment import Deployment
from tests.support.fixtures import Open
from tests.support.sockets import Socket, websocket
from tests.support.waiting import until


@pytest.fixture
def open_socket(deployment: Deployment) -> Iterator[Open]:
    """Open a WebSocket of a user; `seconds` is the lifetime of its token."""
    opened: list[str] = []

    with ExitStack() as connections:

        def open_one(user: User, *, seconds: float = 3600) -> Socket:
            before = set(deployment.connections_of(user.user_id))
            token = deployment.token(user.user_id, seconds)
            started = time.perf_counter()
            connection = connections.enter_context(websocket(deployment, token))
            seconds_taken = time.perf_counter() - started
            (connection_id,) = set(deployment.connections_of(user.user_id)) - before
            opened.append(connection_id)
            return Socket(user, connection, connection_id, seconds_taken)

        yield open_one
        for connection_id in opened:
            # Faster than closing here, which takes the emulator half a second.
            with suppress(deployment.gateway.exceptions.GoneException):
                deployment.gateway.delete_connection(ConnectionId=connection_id)
    # No later test may post to them.
    until(lambda: not any(map(deployment.connection, opened)), "the end of the connections")


@pytest.fixture(scope="session")
def broadcaster(deployment: Deployment) -> Broadcaster:
    """The service that sends the broadcasts."""
    return Broadcaster.from_outputs(deployment.outputs)
