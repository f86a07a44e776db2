"""Raw WebSockets: single frames and close codes, which `muster.Client` hides."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
import time
from asyncio import timeout
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from muster.verify.rows import Broken

FRAME_SECONDS = 30.0
"""How long a reply or a message may take: just over the 29 s that API Gateway gives an integration."""

_LOGGER = logging.getLogger("muster.verify.websocket")
_LOGGER.setLevel(logging.INFO)
"""At DEBUG, websockets logs the handshake's headers, which contain the token."""


@dataclass
class Socket:
    """A raw WebSocket. `early` keeps the frames that arrived before the one that was waited for."""

    connection: ClientConnection
    handshake_seconds: float = 0.0
    early: list[str] = field(default_factory=list)

    async def ask(self, frame: Mapping[str, Any] | str) -> dict[str, Any]:
        """Send a frame and return the reply to it. A string, which need not be JSON, is sent as it is."""
        text = frame if isinstance(frame, str) else json.dumps({"id": uuid4().hex, **frame})
        expected = json.loads(text).get("id") if isinstance(frame, Mapping) else None
        await self.connection.send(text)
        async with timeout(FRAME_SECONDS):
            while True:
                raw = str(await self.connection.recv())
                message: dict[str, Any] = json.loads(raw)
                if "replyTo" in message and message["replyTo"] == expected:
                    return message
                self.early.append(raw)

    async def message(self, identifier: str) -> str:
        """Return the text of the frame that carries a broadcast message."""
        async with timeout(FRAME_SECONDS):
            while True:
                raw = self.early.pop(0) if self.early else str(await self.connection.recv())
                if json.loads(raw).get("id") == identifier:
                    return raw

    async def close_code(self, seconds: float) -> int | None:
        """Wait until the server closes. Return its code; None without a close frame. Raises TimeoutError."""
        async with timeout(seconds):
            try:
                while True:
                    await self.connection.recv()
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd else None

    def reset(self) -> None:
        """Cut the connection with a TCP reset, without closing WebSocket or TLS."""
        raw = self.connection.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()


@contextlib.asynccontextmanager
async def open_socket(
    url: str, token: str | None, *, query: str | None, subprotocols: Sequence[str], proxy: bool
) -> AsyncIterator[Socket]:
    """Open a raw WebSocket; `token` is sent in the Authorization header, `query` in the address.

    `proxy` uses the proxy of the environment. Raises InvalidStatus when the handshake is refused, and Broken
    when no connection can be opened.
    """
    address = url + (f"?Authorization={query}" if query is not None else "")
    began = time.perf_counter()
    try:
        connection = await connect(
            address,
            additional_headers={"Authorization": f"Bearer {token}"} if token is not None else None,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            compression=None,
            ping_interval=None,
            open_timeout=FRAME_SECONDS,
            close_timeout=5,
            max_size=None,
            proxy=True if proxy else None,
            logger=_LOGGER,
        )
    except InvalidStatus:
        raise
    except Exception as error:  # its text may contain the address, and so the token
        raise Broken(
            f"No WebSocket could be opened: {type(error).__name__}.",
            "Check websocket_url, its certificate and its DNS record.",
        ) from None
    try:
        yield Socket(connection, time.perf_counter() - began)
    finally:
        await connection.close()
