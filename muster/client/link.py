"""One WebSocket of a client: opening it, matching replies to requests, and closing it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidProxy, InvalidStatus, WebSocketException

from muster.client.errors import ClientError, HandshakeRefused, TooLarge, Unreachable
from muster.client.inbox import ENVELOPE_TYPES, Message, Session
from muster.faults import json_text

REPLY_TIMEOUT_SECONDS = 30.0
"""Just over the 29 s that API Gateway gives an integration. [API Gateway WebSocket quotas]"""

MAX_SENT_BYTES = 32 * 1024
"""API Gateway closes a connection that sends a larger frame. [API Gateway WebSocket quotas]"""

MAX_RECEIVED_BYTES = 128 * 1024
"""The largest message that API Gateway passes. [API Gateway WebSocket quotas]"""

CLOSE_TIMEOUT_SECONDS = 5.0

logger = logging.getLogger("muster.client")

# At DEBUG, websockets logs the handshake's headers, and so the token.
_websocket_logger = logging.getLogger("muster.client.websocket")
_websocket_logger.setLevel(logging.INFO)


class LinkLost(Exception):
    """The WebSocket closed before the reply came."""


class Link:
    """One WebSocket: sorts what arrives into replies and messages."""

    def __init__(
        self, socket: ClientConnection, session: Session, receive: Callable[[Message], None]
    ) -> None:
        self._socket = socket
        self._receive = receive
        self.session = session
        """The decisions of the core about this connection."""
        # A reply is None when the WebSocket closes before it comes.
        self._replies: dict[str, asyncio.Future[Message | None]] = {}
        self._serving_since: float | None = None
        self._lost = False
        # Set when the link is lost, or when its session has to be looked at earlier than planned.
        self._stirred = asyncio.Event()
        self.closing: asyncio.Task[None] | None = None
        self._reader = asyncio.create_task(self._read())

    def serve(self) -> None:
        """Accept requests from now on: the server knows the connection."""
        if self._serving_since is None:
            self._serving_since = asyncio.get_running_loop().time()

    @property
    def serves(self) -> bool:
        """Whether requests can be sent."""
        return self._serving_since is not None and not self._lost

    @property
    def served_for(self) -> float:
        """The seconds since it began to serve, 0 if it never did."""
        if self._serving_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._serving_since

    def drop(self) -> None:
        """Accept no more requests."""
        self._lost = True
        self._stirred.set()

    def stir(self) -> None:
        """End `lost_within` now."""
        self._stirred.set()

    async def lost_within(self, seconds: float) -> bool:
        """Wait until the link is lost or stirred, at most this long; return whether it is lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        if not self._lost:
            self._stirred.clear()
        return self._lost

    async def request(self, identifier: str, frame: str) -> Message:
        """Return the reply to `frame`, whose id is `identifier`; it may be an error. Raises `LinkLost`."""
        if self._lost:
            raise LinkLost
        if identifier in self._replies:
            raise ClientError(
                f"A message with the id {identifier} is still waiting for its reply.",
                fix="Wait for the reply, or use another id.",
            )
        reply: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self._replies[identifier] = reply
        try:
            await self._socket.send(frame)
            answer = await reply
        except ConnectionClosed:
            self.drop()
            raise LinkLost from None
        finally:
            del self._replies[identifier]
        if answer is None:
            raise LinkLost
        return answer

    async def close(self) -> None:
        """Close the WebSocket. What arrives before the server agrees is still received."""
        self.drop()
        await self._socket.close()
        await asyncio.wait({self._reader})

    def abort(self) -> None:
        """Cut the WebSocket off; its reader ends soon after."""
        self._socket.transport.abort()

    async def _read(self) -> None:
        try:
            async for frame in self._socket:
                self._sort(frame)
        except ConnectionClosed:
            pass
        finally:
            self.drop()
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_result(None)

    def _sort(self, frame: str | bytes) -> None:
        try:
            message = json.loads(frame)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            logger.warning("ignored a frame that is not a JSON object")
            return
        # A server that is not Muster's may send values of any type, also one that cannot be hashed.
        kind, identifier = str(message.get("type")), message.get("id")
        reply = self._replies.get(str(message.get("replyTo")))
        if kind in ENVELOPE_TYPES:
            if isinstance(identifier, str):
                self._receive(message)
            else:
                logger.warning("ignored a message without an id")
        elif reply and not reply.done():
            reply.set_result(message)
        elif "message" in message:
            # An error that names no request, such as API Gateway's own {"message": "Internal server error"}.
            logger.warning("the server reports: %s", message["message"])


class _Connect(connect):
    """Follows no redirect: API Gateway sends none, and the token would go to another server."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def open_websocket(url: str, headers: Mapping[str, str]) -> ClientConnection:
    """Open a WebSocket. Raises `HandshakeRefused` or `Unreachable`; neither contains the query of `url`."""
    reason = _url_problem(url)
    if reason is None:
        try:
            return await _Connect(
                url,
                additional_headers=headers,
                open_timeout=REPLY_TIMEOUT_SECONDS,
                close_timeout=CLOSE_TIMEOUT_SECONDS,
                max_size=MAX_RECEIVED_BYTES,
                # API Gateway does not compress; the ping action keeps the connection from being idle.
                compression=None,
                ping_interval=None,
                logger=_websocket_logger,
            )
        except InvalidStatus as refusal:
            raise HandshakeRefused(refusal.response.status_code) from refusal
        except InvalidProxy:
            # Its text contains the proxy's address, and so perhaps a password.
            reason = "the environment names a proxy whose address is not valid"
        except (ValueError, ImportError) as error:
            # The libraries' text about a bad address may repeat it.
            reason = f"it cannot be used ({type(error).__name__})"
        except (OSError, WebSocketException) as error:
            reason = str(error) or type(error).__name__
    raise Unreachable(
        f"No WebSocket could be opened at {public_address(url)}: {reason}.",
        fix="Check the address, including its stage, and that the stack is up.",
    )


def encode_frame(message: Message) -> str:
    """Return a message as JSON. Raises `TooLarge`, or `ClientError` for what JSON cannot represent."""
    text = json_text(message, ClientError)
    size = len(text.encode())
    if size > MAX_SENT_BYTES:
        raise TooLarge(
            f"The message has {size} bytes, more than the {MAX_SENT_BYTES} that API Gateway accepts.",
            fix="Send less, or a link to the rest.",
        )
    return text


def public_address(url: str) -> str:
    """Return an address without its query, and nothing of an address that may contain a password."""
    shown = re.split("[?#&;]", url)[0]
    return shown if shown and "@" not in url and shown.isprintable() else "that address"


def _url_problem(url: str) -> str | None:
    """Return why this is not a WebSocket address, without any part of it; None if it is one."""
    if not url.isprintable() or " " in url:
        return "it contains a space or a control character"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:
        return "its host or port is not valid"
    if parts.scheme not in ("ws", "wss") or not host:
        return "it is not a ws:// or wss:// address"
    if "@" in parts.netloc:
        return "it contains a user name, but only the token identifies the user"
    return "it has a fragment (#)" if parts.fragment else None
