"""Fixtures of the end-to-end tests: WebSockets that are closed and forgotten after the test."""

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
    """Open a WebSocket of a user; `seconds` is how long its token holds."""
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
            # Quicker than closing them here: the emulator takes half a second to agree to that.
            with suppress(deployment.gateway.exceptions.GoneException):
                deployment.gateway.delete_connection(ConnectionId=connection_id)
    # So that no later test meets them.
    until(lambda: not any(map(deployment.connection, opened)), "the end of the connections")


@pytest.fixture(scope="session")
def broadcaster(deployment: Deployment) -> Broadcaster:
    """A service that broadcasts."""
    return Broadcaster.from_outputs(deployment.outputs)
