"""The types of fixtures that are functions."""

from collections.abc import Callable
from typing import Protocol

from muster.local.seed import User
from tests.support.sockets import Socket

Connect = Callable[..., str]
"""Stores a connection's row, as `Deployment.put_connection` does, and returns the connection's id."""

Figure = Callable[[str, float, float], None]
"""Reports what was measured: its name, the seconds that it took, and the most seconds that it may take."""


class Open(Protocol):
    """Opens a WebSocket of a user."""

    def __call__(self, user: User, *, seconds: float = 3600) -> Socket:
        """`seconds` is the lifetime of the token."""
