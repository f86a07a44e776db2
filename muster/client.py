"""An asyncio WebSocket client: every message once, across lost connections and API Gateway's two hours.

    async with Client(url, token) as client:
        await client.alert({"roles": ["first_responder"]}, {"text": "Water at the north gate"})
        async for message in client:
            print(message["payload"])

What it raises:

    MusterError
    └── ClientError
        ├── HandshakeRefused        the server refused the connection; carries the HTTP status
        ├── Unreachable             no WebSocket could be opened at that address
        ├── Refused                 the server answered a message with an error; carries code and faults
        ├── TooLarge                the message exceeds what API Gateway takes
        ├── ReplyTimeout            no reply came in time; also a TimeoutError
        └── ClientClosed            the client is not open

A token is sent in the handshake's Authorization header only; no log, repr or exception here contains it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from muster.errors import MusterError
from muster.faults import parse_faults

Message = dict[str, Any]
"""A JSON object on the wire; `schemas/` describes each."""

Token = str | Callable[[], str | Awaitable[str]]
"""A JWT, or what makes a fresh one: it is called before each handshake."""

HEARTBEAT_SECONDS = 300.0
"""Half of the idle time after which API Gateway closes a connection. [API Gateway WebSocket quotas]"""

SETTLE_SECONDS = 5.0
"""When a new connection first asks for what it missed: by then the index that broadcasts read knows it."""

REPLY_TIMEOUT_SECONDS = 30.0
"""Just over the 29 s that API Gateway gives an integration. [API Gateway WebSocket quotas]"""

MAX_SENT_BYTES = 32 * 1024
"""API Gateway closes a connection that sends a larger frame. [API Gateway WebSocket quotas]"""

MAX_RECEIVED_BYTES = 128 * 1024
"""The largest message that API Gateway passes. [API Gateway WebSocket quotas]"""

REMEMBERED_IDS = 10_000
"""Message ids kept for dropping duplicates: far more than the server sends twice."""

BACKOFF_BASE_SECONDS = 1.0
BACKOFF_CAP_SECONDS = 30.0

ROLLOVER_WINDOW = (0.8, 1.0)
"""The part of a connection's life in which it is replaced; drawn at random, so that clients which connected
together do not come back together."""

SHORTEST_LIFE_SECONDS = 1.0
"""The least time before a working connection is replaced, whatever the server says."""

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

ENVELOPE_TYPES = frozenset({"alert", "broadcast", "shelter_update"})

logger = logging.getLogger(__name__)

# At DEBUG, websockets logs the handshake's headers, and so the token.
_wire_logger = logging.getLogger(f"{__name__}.websocket")
_wire_logger.setLevel(logging.INFO)


class ClientError(MusterError):
    """Base of what a `Client` raises."""


class HandshakeRefused(ClientError):
    """The server refused the connection with the HTTP `status`.

    The local emulator answers 403 whatever the reason; AWS answers 401 for a token that does not hold and
    403 for a user who may not connect.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"The server refused the connection with HTTP {status}.", fix=_handshake_fix(status))
        self.status = status

    @property
    def transient(self) -> bool:
        """Whether the same token may be accepted later: throttling, or a failure of the server's own."""
        return self.status == 429 or self.status >= 500


class Unreachable(ClientError):
    """No WebSocket could be opened: no such host, nobody listening, TLS, or no answer in time."""


class Refused(ClientError):
    """The server answered with an error; `reply` is its answer, `code` and `faults` are parts of that."""

    def __init__(self, reply: Message) -> None:
        self.reply = reply
        self.code: str = reply["code"]
        self.faults = parse_faults(reply.get("faults", ()))
        super().__init__(
            f"{reply['message']} ({self.code})", fix="; ".join(str(fault) for fault in self.faults) or None
        )


class TooLarge(ClientError):
    """The message is over MAX_SENT_BYTES; API Gateway would close the connection."""


class ReplyTimeout(ClientError, TimeoutError):
    """No reply came in time. Whether the server acted is unknown; sending the same `id` again is safe."""


class ClientClosed(ClientError):
    """The client is used outside its `async with`."""


class Client:
    """A connection that stays: it answers API Gateway's time limits, reconnects after a loss, and resumes.

    Iterating yields the messages sent to this user's audiences, as `schemas/envelope.schema.json` has them.

    - On the wire delivery is at least once; each message id is yielded once (of the last REMEMBERED_IDS).
    - Everything sent from the moment the `async with` is entered is yielded, also what was sent while the
      connection was lost, as long as the server retains it (7 days by default). A message whose post failed
      although the connection lives comes with the next heartbeat.
    - What was missed comes oldest first, before what arrives meanwhile; otherwise the order is that of
      arrival.
    - Messages wait in memory, without bound, until they are iterated.

    The connection is replaced before API Gateway's two hours or, if `token` is a callable, the token's end:
    the new one is open before the old one closes. With a token that is a string, the connection ends with it.
    Reconnecting goes on with full-jitter backoff until the server refuses the token or the user;
    that ends the iteration, and everything in flight, with `HandshakeRefused`. So does an exception of the
    token's callable, with that exception.

    One task may iterate and any number may send. A client is used once.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        resume_after: str | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        """`url` is the deployment's websocket_url.

        With `resume_after`, the id of the last message seen earlier, iteration begins with what was sent
        since; messages from up to four minutes before it may come again, because recording takes time.
        `heartbeat` is the number of seconds between two pings, each with a look for missed messages.
        """
        self._url = url
        self._token = token
        self._heartbeat = heartbeat
        self._resumes = resume_after is not None
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        # Message ids, oldest first, and whether each has come by a post yet: a resume may be faster.
        self._seen: dict[str, bool] = {}
        # Everything up to this id has been delivered; a resume starts here. Only what a resume brings moves
        # it: a message that comes by itself says nothing about those before it, whose posts may have failed.
        self._mark = resume_after or ""
        # Nothing sent before this time is wanted; None until the server has confirmed a connection.
        self._since: str | None = None
        # Messages that arrive while older ones are being fetched; None when nothing is.
        self._held: list[Message] | None = None
        self._link: _Link | None = None
        self._ready = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._failure: Exception | None = None
        self.duplicates = 0
        """How many messages were posted again and dropped; what a resume repeats does not count."""
        self.handshake_seconds = 0.0
        """How long the latest handshake took."""

    def __repr__(self) -> str:
        return f"<Client {_address(self._url)}>"

    async def __aenter__(self) -> Self:
        """Connect. When it returns, the server has confirmed that it knows the connection.

        The first connection is not retried: it raises `HandshakeRefused` or `Unreachable`.
        """
        if self._runner is not None:
            raise RuntimeError("A Client is used once: make another.")
        self._runner = asyncio.create_task(self._run(await self._open()))
        try:
            await self._ready.wait()
            if self._failure:
                raise self._failure
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; iteration ends after what has already arrived. Repeatable."""
        if self._runner is None:
            return
        self._runner.cancel()
        await asyncio.wait({self._runner, *self._closing})
        if self._link:
            link, self._link = self._link, None
            await link.close()
        self._inbox.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        message = await self._inbox.get()
        if message is not None:
            return message
        self._inbox.put_nowait(None)
        if self._failure:
            raise self._failure
        raise StopAsyncIteration

    async def send(self, message: Mapping[str, Any], *, timeout: float = REPLY_TIMEOUT_SECONDS) -> Message:
        """Send a client message and return the server's reply to it; raise `Refused` for an error.

        `message` gets an `id` unless it has one. The server acts once per id, so a message whose connection
        is lost before the reply is sent again on the next, all within `timeout` seconds.
        """
        request = {"id": uuid4().hex, **message}
        if not REQUEST_ID.fullmatch(str(request["id"])):
            # The server could not refer to it in its reply.
            raise ClientError(
                f"{request['id']!r} cannot identify a message.",
                fix="Use 1 to 64 of the characters A-Z, a-z, 0-9, - and _, or leave the id out.",
            )
        try:
            async with asyncio.timeout(timeout):
                while True:
                    link = await self._usable_link()
                    try:
                        return await link.request(request)
                    except Refused as refusal:
                        if refusal.code != "unknown_connection":
                            raise
                        await link.close()
                    except _LinkLost:
                        pass
                    if link is self._link:
                        self._ready.clear()
        except TimeoutError as error:
            raise ReplyTimeout(
                f"The server did not answer {message.get('action', 'the message')} within {timeout:g} s.",
                fix="Send it again with the same id: the server acts once per id.",
            ) from error

    async def broadcast(
        self, target: Mapping[str, Any], payload: Mapping[str, Any], *, offline: str | None = None
    ) -> Message:
        """Send a broadcast; return its ack, whose `id` is the message's."""
        return await self.send(_given(action="broadcast", target=target, payload=payload, offline=offline))

    async def alert(
        self, target: Mapping[str, Any], payload: Mapping[str, Any], *, offline: str | None = None
    ) -> Message:
        """Send an alert; return its ack, whose `id` is the message's."""
        return await self.send(_given(action="alert", target=target, payload=payload, offline=offline))

    async def shelter_update(
        self,
        shelter_id: str,
        payload: Mapping[str, Any],
        *,
        target: Mapping[str, Any] | None = None,
        offline: str | None = None,
    ) -> Message:
        """Send an update about a shelter, to its own people unless a target is given; return its ack."""
        update = {"action": "shelter_update", "shelterId": shelter_id, "payload": payload}
        return await self.send(update | _given(target=target, offline=offline))

    async def ping(self) -> Message:
        """Return the server's pong. Whatever was posted to this connection before it has then arrived."""
        return await self.send({"action": "ping"})

    async def renew(self, token: str | None = None) -> Message:
        """Extend the connection with `token`, or with a fresh one from the token's callable."""
        return await self.send({"action": "renew", "token": token or await self._fresh_token()})

    async def resume(self, after: str | None = None) -> list[Message]:
        """Return what the server retains for this user since the id `after`, or all of it, oldest first.

        For history: it neither adds to nor takes from what iteration yields.
        """
        request = _given(action="resume", after=after)
        return [message async for page in _pages(self.send, request) for message in page]

    async def _usable_link(self) -> _Link:
        if self._runner and not self._runner.done():
            await self._ready.wait()
        if self._link is None or self._failure:
            raise self._failure or ClientClosed("The client is not open.", fix="Use it inside `async with`.")
        return self._link

    async def _run(self, link: _Link) -> None:
        """Keep a connection open, one after the other, until the server will have no more of it."""
        try:
            while True:
                if not await self._tend(link):
                    if self._since is None:
                        raise Unreachable(
                            f"The server at {_address(self._url)} connects but does not answer pings.",
                            fix="Read the log of the default function.",
                        )
                    self._ready.clear()
                    self._failures += 1
                previous, link = link, await self._reopen()
                closing = asyncio.create_task(previous.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        except Exception as error:
            self._failure = error
            self._inbox.put_nowait(None)
        finally:
            self._ready.set()

    async def _tend(self, link: _Link) -> bool:
        """Keep a connection alive. Return True when its time has come, False when it no longer serves."""
        try:
            await self._greet(link)
            if self._held is not None:
                await self._catch_up(link)
            self._failures = 0
            pause = min(SETTLE_SECONDS, self._heartbeat)
            while (left := link.replace_at - asyncio.get_running_loop().time()) > 0:
                await asyncio.wait({link.reader}, timeout=min(pause, left))
                if left > pause or link.reader.done():
                    await self._greet(link)
                    await self._catch_up(link)
                pause = self._heartbeat
        except (_LinkLost, TimeoutError):
            logger.info("connection lost")
        except Refused as refusal:
            if refusal.code not in ("unknown_connection", "internal"):
                raise
            logger.info("connection unusable: %s", refusal)
        else:
            logger.info("replacing the connection before its time is up")
            return True
        return False

    async def _greet(self, link: _Link) -> None:
        """Ask whether the server knows the connection, and until when."""
        async with asyncio.timeout(REPLY_TIMEOUT_SECONDS):
            pong = await link.request({"action": "ping", "id": uuid4().hex})
        connected_at = datetime.fromisoformat(pong["connectedAt"])
        # Only a callable can give the next connection a later end than this one's.
        ends = ("reconnectBy", "expiresAt") if callable(self._token) else ("reconnectBy",)
        life = min(datetime.fromisoformat(pong[end]) for end in ends) - connected_at
        link.live_for(life.total_seconds())
        if self._since is None:
            self._since = "" if self._resumes else pong["connectedAt"]
            self._mark = self._mark or _lowest_id(connected_at)
        self._ready.set()

    async def _catch_up(self, link: _Link) -> None:
        """Deliver what was said while nobody listened, oldest first; then what has arrived since."""

        async def ask(request: Message) -> Message:
            async with asyncio.timeout(REPLY_TIMEOUT_SECONDS):
                return await link.request({**request, "id": uuid4().hex})

        count = 0
        async for page in _pages(ask, {"action": "resume", "after": self._mark}):
            for message in page:
                # The server reads back a little before the mark, and so perhaps before the first connection.
                if message["sentAt"] >= (self._since or ""):
                    count += self._deliver(message)
                self._mark = max(self._mark, message["id"])
        held, self._held = self._held or [], None
        for message in held:
            self._deliver(message, posted=True)
        if count:
            logger.info("resumed: %d missed", count)

    def _receive(self, message: Message) -> None:
        if self._seen.get(message["id"]):
            self.duplicates += 1
        elif self._held is None:
            self._deliver(message, posted=True)
        else:
            self._held.append(message)

    def _deliver(self, message: Message, *, posted: bool = False) -> bool:
        identifier = message["id"]
        if identifier in self._seen:
            self._seen[identifier] |= posted
            return False
        self._seen[identifier] = posted
        if len(self._seen) > REMEMBERED_IDS:
            del self._seen[next(iter(self._seen))]
        self._inbox.put_nowait(message)
        return True

    async def _reopen(self) -> _Link:
        while True:
            if self._failures:
                most = min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2 ** (self._failures - 1))
                delay = random.uniform(0, most)  # noqa: S311 - jitter needs no secrecy
                logger.info("reconnecting in %.1f s", delay)
                await asyncio.sleep(delay)
            try:
                return await self._open()
            except HandshakeRefused as refusal:
                if not refusal.transient:
                    raise
                logger.info("not connected: %s", refusal)
            except Unreachable as error:
                logger.info("not connected: %s", error)
            self._failures += 1

    async def _open(self) -> _Link:
        """Open a WebSocket and make it the current one."""
        headers = {"Authorization": f"Bearer {await self._fresh_token()}"}
        started = asyncio.get_running_loop().time()
        socket = await _connect(self._url, headers)
        self.handshake_seconds = asyncio.get_running_loop().time() - started
        if self._mark and self._held is None:
            self._held = []
        self._link = _Link(socket, self._receive)
        logger.info("connected")
        return self._link

    async def _fresh_token(self) -> str:
        token = self._token if isinstance(self._token, str) else self._token()
        return await token if inspect.isawaitable(token) else token


class _LinkLost(Exception):
    """The WebSocket closed before the reply came."""


class _Link:
    """One WebSocket: sorts what arrives into replies and messages."""

    def __init__(self, socket: ClientConnection, receive: Callable[[Message], None]) -> None:
        self._socket = socket
        self._receive = receive
        # A reply is None when the WebSocket closes before it comes.
        self._replies: dict[str, asyncio.Future[Message | None]] = {}
        self._opened_at = asyncio.get_running_loop().time()
        self._spread = random.uniform(*ROLLOVER_WINDOW)  # noqa: S311 - jitter needs no secrecy
        self.replace_at = float("inf")
        self.reader = asyncio.create_task(self._read())

    def live_for(self, seconds: float) -> None:
        """Let the link be replaced towards the end of this many seconds from its opening."""
        self.replace_at = self._opened_at + max(SHORTEST_LIFE_SECONDS, self._spread * seconds)

    async def request(self, message: Mapping[str, Any]) -> Message:
        """Return the reply to `message`, which has an id. Raises `Refused` or `_LinkLost`."""
        text = json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size = len(text.encode())
        if size > MAX_SENT_BYTES:
            raise TooLarge(
                f"The message takes {size} bytes, more than the {MAX_SENT_BYTES} that API Gateway takes.",
                fix="Send less, or a link to the rest.",
            )
        if self.reader.done():
            raise _LinkLost
        identifier = message["id"]
        if identifier in self._replies:
            raise ValueError(f"A message with the id {identifier!r} is still waiting for its reply.")
        reply: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self._replies[identifier] = reply
        try:
            await self._socket.send(text)
            answer = await reply
        except ConnectionClosed:
            raise _LinkLost from None
        finally:
            del self._replies[identifier]
        if answer is None:
            raise _LinkLost
        if answer["type"] == "error":
            raise Refused(answer)
        return answer

    async def close(self) -> None:
        """Close the WebSocket; what arrives before the other side agrees is still received."""
        await self._socket.close()
        await asyncio.wait({self.reader})

    async def _read(self) -> None:
        try:
            async for frame in self._socket:
                self._sort(frame)
        except ConnectionClosed:
            pass
        finally:
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_result(None)

    def _sort(self, frame: str | bytes) -> None:
        try:
            message = json.loads(frame)
            kind, reply_to = message.get("type"), message.get("replyTo")
        except (ValueError, AttributeError):
            logger.warning("ignored a frame that is not a JSON object")
            return
        reply = self._replies.get(reply_to)
        if kind in ENVELOPE_TYPES:
            self._receive(message)
        elif reply and not reply.done():
            reply.set_result(message)
        elif "message" in message:
            # An error that names no request, such as API Gateway's own {"message": "Internal server error"}.
            logger.warning("the server reports: %s", message["message"])


async def _connect(url: str, headers: Mapping[str, str]) -> ClientConnection:
    try:
        return await connect(
            url,
            additional_headers=headers,
            open_timeout=REPLY_TIMEOUT_SECONDS,
            close_timeout=5,
            max_size=MAX_RECEIVED_BYTES,
            # API Gateway does not compress; and its idle timer is answered by the ping action.
            compression=None,
            ping_interval=None,
            logger=_wire_logger,
        )
    except InvalidStatus as refusal:
        raise HandshakeRefused(refusal.response.status_code) from refusal
    except InvalidURI:
        # Its text repeats the whole address, with whatever secret the query may hold.
        reason = "it is not a ws:// or wss:// address"
    except (OSError, WebSocketException) as error:
        reason = str(error) or type(error).__name__
    raise Unreachable(
        f"No WebSocket could be opened at {_address(url)}: {reason}.",
        fix="Check the address, including its stage, and that the stack is up.",
    )


async def _pages(
    ask: Callable[[Message], Awaitable[Message]], request: Message
) -> AsyncIterator[list[Message]]:
    """The pages of messages that answer a resume request, until the server has no more."""
    while True:
        answer = await ask(request)
        yield answer["messages"]
        if not answer["more"]:
            return
        request = {"action": "resume", "cursor": answer["cursor"]}


def _given(**fields: Any) -> Message:
    return {name: value for name, value in fields.items() if value is not None}


def _lowest_id(instant: datetime) -> str:
    """The lowest UUIDv7 of an instant [RFC 9562]: a place to resume from before any message was seen."""
    return str(UUID(int=int(instant.timestamp() * 1000) << 80 | 0x7 << 76 | 0x2 << 62))


def _address(url: str) -> str:
    return url.partition("?")[0]


def _handshake_fix(status: int) -> str:
    match status:
        case 401:
            return "Get a fresh token: this one is missing, expired or not signed for this deployment."
        case 403:
            return "Check that the token is fresh and meant for this deployment, and that its user is active."
        case 429:
            return "Try again shortly: too many clients are connecting at once."
        case _ if status >= 500:
            return "Try again; if it persists, read the log of the connect function."
        case _:
            return "Check the address, including its stage."
