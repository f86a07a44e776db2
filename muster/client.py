"""An asyncio WebSocket client: every message once, across lost connections and API Gateway's two hours.

    async with Client(url, token) as client:
        await client.alert({"roles": ["first_responder"]}, {"text": "Water at the north gate"})
        async for message in client:
            print(message["payload"])

What it raises:

    MusterError
    └── ClientError                 also by itself: the message or the token cannot be sent
        ├── HandshakeRefused        the server refused the connection; carries the HTTP status
        ├── Unreachable             no WebSocket could be opened at that address
        ├── Refused                 the server answered a message with an error; carries code and faults
        ├── TooLarge                the message exceeds what API Gateway takes
        ├── ReplyTimeout            no reply came in time; also a TimeoutError
        └── ClientClosed            the client is not open

A token is sent in the handshake's Authorization header and in `renew` only. No log, repr or exception here
contains any part of it, or of the URL's query.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import random
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidProxy, InvalidStatus, WebSocketException

from muster.errors import MusterError
from muster.faults import json_text, parse_faults

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

HOLD_SECONDS = 5.0
"""How long new messages wait, after a reconnection, for the older ones that a resume brings."""

BACKOFF_BASE_SECONDS = 1.0
BACKOFF_CAP_SECONDS = 30.0
"""The pause before attempt n is random, up to BASE * 2**(n - 1) and at most CAP."""

STABLE_SECONDS = 30.0
"""How long a connection must serve before the pause before a reconnection starts from its base again."""

ROTATION_SECONDS = 300.0
"""How long functions may still use a key that was rotated [docs/operations.md]: for so long a 401 to a fresh
token is not final."""

ROLLOVER_WINDOW = (0.8, 1.0)
"""The part of a connection's life in which it is replaced; drawn at random, so that clients which connected
together do not come back together."""

SHORTEST_LIFE_SECONDS = 1.0
"""The least time before a working connection is replaced, whatever the server says."""

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""A bearer token [RFC 6750]; a JWT is one."""

FINAL_CODES = frozenset(
    {
        "invalid_json",
        "invalid_message",
        "unknown_action",
        "too_large",
        "forbidden",
        "conflict",
        "token_invalid",
    }
)
"""Errors that the same message would get again [docs/protocol.md]."""

ENVELOPE_TYPES = frozenset({"alert", "broadcast", "shelter_update"})

logger = logging.getLogger(__name__)

# At DEBUG, websockets logs the handshake's headers, and so the token.
_wire_logger = logging.getLogger(f"{__name__}.websocket")
_wire_logger.setLevel(logging.INFO)


class ClientError(MusterError):
    """Base of what a `Client` raises."""


class HandshakeRefused(ClientError):
    """The server refused the connection with the HTTP `status`.

    401 is the answer to a token that does not hold, 403 to a user or a web page that may not connect, 429 to
    too many requests, 5xx to a fault of the server. `muster logs connect` shows the reason.
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
        self.code = str(reply.get("code"))
        self.faults = parse_faults(reply.get("faults", ()))
        fix = "; ".join(str(fault) for fault in self.faults)
        super().__init__(f"{reply.get('message')} ({self.code})", fix=fix or None)

    @property
    def transient(self) -> bool:
        """Whether this connection may accept the same message later: a failure of the server's own."""
        return self.code not in FINAL_CODES and self.code != "unknown_connection"


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
    - After a reconnection, what was missed comes oldest first, and new messages wait for it, but no longer
      than HOLD_SECONDS and not when the server fails to answer the `resume`. Otherwise the order is that of
      arrival. A message that a `resume` brings after a newer one was yielded has `"late": true` added to it.
    - Messages wait in memory, without bound, until they are iterated. Iteration ends, or raises, only after
      all that arrived was yielded.

    The connection is replaced before API Gateway's two hours or, if `token` is a callable, the token's end:
    the new one is open before the old one closes. With a token that is a string, the connection ends with it.

    Reconnecting goes on with full-jitter backoff, which starts from its base again once a connection has
    served for STABLE_SECONDS. It ends, with the iteration and everything in flight, when

    - the server refuses the token or the user (`HandshakeRefused`). If `token` is a callable, a 401 is final
      only ROTATION_SECONDS after the first: until then the callable is asked again.
    - the token's callable raises, with that exception. An `OSError` other than `PermissionError`, such as
      `ConnectionError`, a time-out or a failure of urllib, does not end it: the callable is asked again.

    One task may iterate and any number may send. A client is used once.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        position: str | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        """`url` is the deployment's websocket_url.

        With `position`, the `position` of an earlier client, iteration begins with what that client had not
        yielded; messages from up to four minutes before may come again, because recording takes time. A
        position is valid for the role and shelter that its client had: a client of a user who has moved since
        gets from that position on what the new audiences were sent. `resume()` returns what came before it.
        `heartbeat` is the number of seconds between two pings, each with a look for missed messages.
        """
        self._url = url
        self._token = token
        self._heartbeat = heartbeat
        self._inbox = Inbox(position)
        # Set at every change that somebody may wait for: a message, a link that serves, the end.
        self._changed = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        # The link that serves, or served last; and every link that is not closed yet.
        self._link: _Link | None = None
        self._links: set[_Link] = set()
        self._hold_timer: asyncio.TimerHandle | None = None
        self._failures = 0
        self.handshake_seconds = 0.0
        """How long the latest handshake took."""

    def __repr__(self) -> str:
        return f"<Client {_address(self._url)}>"

    @property
    def position(self) -> str | None:
        """Where a later client should go on: store it after handling a message, pass it as `position=`.

        It is the last id that a `resume` has brought, as far as iteration has come; before the first, it is
        the moment of the first connection, as the lowest id of that time. It is never the last id seen: a
        message that comes by itself says nothing about those before it, whose posts may have failed. None
        before the first connection.
        """
        return self._inbox.position

    @property
    def duplicates(self) -> int:
        """How many messages were posted again and dropped; what a resume repeats does not count."""
        return self._inbox.duplicates

    async def __aenter__(self) -> Self:
        """Connect. When it returns, the server has confirmed that it knows the connection.

        The first connection is not retried: it raises `HandshakeRefused`, `Unreachable`, or what the token's
        callable raises.
        """
        if self._runner is not None:
            raise RuntimeError("A Client is used once: make another.")
        self._runner = asyncio.create_task(self._run())
        self._runner.add_done_callback(self._wake)
        try:
            await self._serving_link()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; iteration ends after what has already arrived. Repeatable.

        Cancelled, it cuts the connection instead of closing it in order.
        """
        if self._runner is None:
            return
        self._runner.cancel()
        try:
            while not self._over:
                await self._change()
        except asyncio.CancelledError:
            for link in self._links:
                link.abort()
            raise

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while True:
            message = self._inbox.take()
            if message is not None:
                return message
            if self._runner is None:
                raise _not_open()
            if self._over:
                raise self._failure or StopAsyncIteration
            await self._change()

    async def send(self, message: Mapping[str, Any], *, timeout: float = REPLY_TIMEOUT_SECONDS) -> Message:
        """Send a client message and return the server's reply to it; raise `Refused` for an error.

        `message` gets an `id` unless it has one. The server acts once per id, so a message whose connection
        is lost before the reply is sent again on the next, all within `timeout` seconds.
        """
        request = {"id": uuid4().hex, **message}
        identifier = request["id"]
        if not (isinstance(identifier, str) and REQUEST_ID.fullmatch(identifier)):
            # The server could not refer to it in its reply.
            raise ClientError(
                f"{identifier!r} cannot identify a message.",
                fix="Use text of 1 to 64 of the characters A-Z, a-z, 0-9, - and _, or leave the id out.",
            )
        frame = _frame(request)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    link = await self._serving_link()
                    try:
                        return await link.request(identifier, frame)
                    except Refused as refusal:
                        if refusal.code != "unknown_connection":
                            raise
                        link.drop()
                    except _LinkLost:
                        pass
        except TimeoutError as error:
            raise ReplyTimeout(
                f"The server did not answer {message.get('action', 'the message')} within {timeout:g} s.",
                fix=f"Send it again with the id {identifier}: the server acts once per id.",
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
        """Extend the connection with `token`, or with a fresh one from the token's callable.

        The connection takes over the role and shelter that the user has now. If they have changed, iteration
        also yields what was sent to the new ones since this connection was opened. A user who may not connect
        any more is refused (`Refused`, with the code forbidden), and iteration ends with `HandshakeRefused`.
        """
        fresh = await self._fresh_token() if token is None else _checked_token(token)
        renewed = await self.send({"action": "renew", "token": fresh})
        if self._link:
            self._link.look_again()
        return renewed

    async def resume(self, after: str | None = None) -> list[Message]:
        """Return what the server retains for this user since the id `after`, or all of it, oldest first.

        For history: it neither adds to nor takes from what iteration yields, and moves no `position`.
        """
        request = _given(action="resume", after=after)
        return [message async for page in _pages(self.send, request) for message in page]

    @property
    def _failure(self) -> BaseException | None:
        """What ended the client by itself."""
        runner = self._runner
        return runner.exception() if runner and runner.done() and not runner.cancelled() else None

    @property
    def _over(self) -> bool:
        """Whether nothing can arrive any more."""
        return self._runner is not None and self._runner.done() and not self._links

    def _wake(self, _: object = None) -> None:
        self._changed.set()

    async def _change(self) -> None:
        """Wait for the next change; check what you wait for before, without an await in between."""
        self._changed.clear()
        await self._changed.wait()

    async def _serving_link(self) -> _Link:
        while True:
            if self._runner is None or self._runner.done():
                raise self._failure or _not_open()
            if self._link and self._link.serves:
                return self._link
            await self._change()

    async def _run(self) -> None:
        """Keep a connection open, one after the other, until the server refuses the next."""
        try:
            link = await self._open()
            while True:
                planned = await self._tend(link)
                if not planned:
                    self._retire(link)
                stable = link.served_for >= STABLE_SECONDS
                if stable:
                    self._failures = 0
                if not (planned and stable):
                    self._failures += 1
                link = await self._reopen()
        finally:
            self._release()
            for link in self._links:
                self._retire(link)

    async def _tend(self, link: _Link) -> bool:
        """Keep a connection alive. Return True when its time has come, False when it no longer serves.

        While the server fails to answer, the connection stays, because messages may still come by it, and it
        is asked again after growing pauses.
        """
        behind = self._inbox.resume_from is not None
        refusals = 0
        while True:
            try:
                await self._greet(link)
                if behind:
                    await self._catch_up(link)
            except (_LinkLost, Refused, TimeoutError) as error:
                if isinstance(error, Refused) and error.code in FINAL_CODES:
                    raise
                if self._link is None:
                    raise Unreachable(
                        f"The server at {_address(self._url)} connects but does not answer pings.",
                        fix="Read the log of the function: `muster logs default`.",
                    ) from None
                if isinstance(error, _LinkLost) or (isinstance(error, Refused) and not error.transient):
                    logger.info("connection lost")
                    return False
                refusals += 1
                pause = min(self._heartbeat, _backoff(refusals))
                reason = error.code if isinstance(error, Refused) else "no answer"
                logger.info("the server does not resume (%s), asking again in %.1f s", reason, pause)
            else:
                refusals = 0
                pause = self._heartbeat if link.settled else min(SETTLE_SECONDS, self._heartbeat)
                link.settled = True
            self._release()
            behind = True
            left = link.replace_at - asyncio.get_running_loop().time()
            lost = await link.lost_within(min(pause, left))
            if asyncio.get_running_loop().time() >= link.replace_at and not lost:
                logger.info("replacing the connection before its time is up")
                return True

    async def _greet(self, link: _Link) -> None:
        """Ask whether the server knows the connection, and until when; then let it serve."""
        try:
            pong = await _ask(link, {"action": "ping"})
        except TimeoutError:
            raise _LinkLost from None
        with _understood(self._url):
            connected_at = datetime.fromisoformat(pong["connectedAt"])
            # Only a callable can give the next connection a later end than this one's.
            ends = ("reconnectBy", "expiresAt") if callable(self._token) else ("reconnectBy",)
            life = min(datetime.fromisoformat(pong[end]) for end in ends) - connected_at
            self._inbox.begin(pong["connectedAt"], (pong.get("role"), pong.get("shelterId")))
        link.live_for(life.total_seconds())
        if self._link is not link:
            previous, self._link = self._link, link
            if previous:
                self._retire(previous)
        link.serve()
        self._wake()

    async def _catch_up(self, link: _Link) -> None:
        """Fetch what was sent since the last resume, oldest first."""

        async def ask(request: Message) -> Message:
            return await _ask(link, request)

        count = 0
        with _understood(self._url):
            async for page in _pages(ask, {"action": "resume", "after": self._inbox.resume_from}):
                count += self._inbox.bring(page)
                self._wake()
        if count:
            logger.info("resumed: %d missed", count)

    def _receive(self, message: Message) -> None:
        self._inbox.post(message)
        self._wake()

    def _hold(self) -> None:
        """Let new messages wait for the older ones of the coming resume."""
        if self._hold_timer is None:
            self._inbox.hold()
            self._hold_timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._release)

    def _release(self) -> None:
        if self._hold_timer:
            self._hold_timer.cancel()
            self._hold_timer = None
            self._inbox.release()
            self._wake()

    async def _reopen(self) -> _Link:
        refused_at: float | None = None
        while True:
            if self._failures:
                delay = _backoff(self._failures)
                logger.info("reconnecting in %.1f s", delay)
                await asyncio.sleep(delay)
            try:
                return await self._open()
            except HandshakeRefused as refusal:
                if refusal.status == 401 and callable(self._token):
                    # The key may be rotating, and this function's not yet the one that signed the token.
                    now = asyncio.get_running_loop().time()
                    refused_at = now if refused_at is None else refused_at
                    if now - refused_at >= ROTATION_SECONDS:
                        raise
                elif not refusal.transient:
                    raise
                logger.info("not connected: %s", refusal)
            except Unreachable as error:
                logger.info("not connected: %s", error)
            except PermissionError:
                raise
            except OSError as error:
                # Its text is not Muster's: it may hold a secret.
                logger.info("not connected: the token's callable raised %s", type(error).__name__)
            self._failures += 1

    async def _open(self) -> _Link:
        """Open a WebSocket."""
        headers = {"Authorization": f"Bearer {await self._fresh_token()}"}
        started = asyncio.get_running_loop().time()
        socket = await _connect(self._url, headers)
        self.handshake_seconds = asyncio.get_running_loop().time() - started
        if self._inbox.resume_from is not None:
            self._hold()
        link = _Link(socket, self._receive)
        self._links.add(link)
        logger.info("connected")
        return link

    def _retire(self, link: _Link) -> None:
        """Close a link in the background; what still arrives by it is yielded."""
        if link.closing is None:
            link.closing = asyncio.create_task(link.close())
            link.closing.add_done_callback(lambda _: self._links.discard(link))
            link.closing.add_done_callback(self._wake)

    async def _fresh_token(self) -> str:
        token = self._token if isinstance(self._token, str) else self._token()
        return _checked_token(await token if inspect.isawaitable(token) else token)


class Inbox:
    """What arrives goes in; what to yield, and where to resume, comes out. It does no I/O.

    Only what a resume brings moves the place to resume from: a message that comes by itself says nothing
    about those before it, whose posts may have failed.
    """

    def __init__(self, position: str | None) -> None:
        self.position = position
        """The last id that a resume has brought, among those up to which everything was taken."""
        self.resume_from = position
        """The last id that a resume has brought; None until `begin` if there was no position."""
        self.duplicates = 0
        # Nothing sent before this time is wanted.
        self._since = ""
        # What the last pong said: the role and shelter, and since when at the latest they were the user's.
        self._audiences: tuple[str | None, str | None] | None = None
        self._connected_at = ""
        # Message ids, oldest first, and whether each has come by a post yet: a resume may be faster.
        self._seen: dict[str, bool] = {}
        # The highest id among the messages to yield.
        self._newest = ""
        # Messages that arrive while older ones are being fetched; None when nothing is.
        self._held: list[Message] | None = None
        # Messages to yield, each with the position once it is taken.
        self._queue: deque[tuple[Message, str | None]] = deque()

    def begin(self, connected_at: str, audiences: tuple[str | None, str | None]) -> None:
        """Without a position, want what is sent from this time on.

        `audiences` are the role and shelter of the connection. When they are other than before, they may have
        changed at any time since the connection before was opened, so everything is resumed from there.
        """
        if self.resume_from is None:
            self._move(_lowest_id(datetime.fromisoformat(connected_at)))
            self._since = connected_at
        elif self._audiences not in (None, audiences):
            self._move_back(_lowest_id(datetime.fromisoformat(self._connected_at)))
        self._audiences, self._connected_at = audiences, connected_at

    def hold(self) -> None:
        """Keep posted messages back until `release`, so that what a resume brings comes first."""
        self._held = []

    def release(self) -> None:
        """Yield what was kept back, and from now on each message when it arrives."""
        held, self._held = self._held or [], None
        for message in held:
            self._add(message, posted=True)

    def post(self, message: Message) -> None:
        """Take a message that came by itself."""
        if self._seen.get(message["id"]):
            self.duplicates += 1
        elif self._held is None:
            self._add(message, posted=True)
        else:
            self._held.append(message)

    def bring(self, messages: Iterable[Message]) -> int:
        """Take messages of a resume, oldest first; return how many of them are new."""
        count = 0
        for message in messages:
            # The server reads back a little before the position, and so perhaps before the first connection.
            if message["sentAt"] >= self._since:
                late = {"late": True} if message["id"] < self._newest else {}
                count += self._add(message | late)
            self._move(message["id"])
        return count

    def take(self) -> Message | None:
        """Return the next message to yield, or None."""
        if not self._queue:
            return None
        message, self.position = self._queue.popleft()
        return message

    def _add(self, message: Message, *, posted: bool = False) -> bool:
        identifier = message["id"]
        if identifier in self._seen:
            self._seen[identifier] |= posted
            return False
        self._seen[identifier] = posted
        if len(self._seen) > REMEMBERED_IDS:
            del self._seen[next(iter(self._seen))]
        self._newest = max(self._newest, identifier)
        self._queue.append((message, self.resume_from))
        return True

    def _move(self, identifier: str) -> None:
        """Resume from here; a position is reached once everything before it was taken."""
        self.resume_from = max(self.resume_from or "", identifier)
        if self._queue:
            self._queue[-1] = (self._queue[-1][0], self.resume_from)
        else:
            self.position = self.resume_from

    def _move_back(self, identifier: str) -> None:
        """Resume from here at the latest, also when only the position is left to go on from."""
        self.resume_from = min(self.resume_from or identifier, identifier)
        self.position = min(self.position or identifier, identifier)
        self._queue = deque((message, min(at or identifier, identifier)) for message, at in self._queue)


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
        self._serving_since: float | None = None
        self._spread = random.uniform(*ROLLOVER_WINDOW)  # noqa: S311 - jitter needs no secrecy
        self._lost = False
        # Set when the link is lost or to be looked at before its time.
        self._stirred = asyncio.Event()
        self.replace_at = float("inf")
        self.settled = False
        """Whether the indexes that broadcasts read have surely followed the connection's row."""
        self.closing: asyncio.Task[None] | None = None
        self._reader = asyncio.create_task(self._read())

    def live_for(self, seconds: float) -> None:
        """Let the link be replaced towards the end of this many seconds from its opening."""
        self.replace_at = self._opened_at + max(SHORTEST_LIFE_SECONDS, self._spread * seconds)

    def serve(self) -> None:
        """Take requests from now on: the server knows the connection."""
        if self._serving_since is None:
            self._serving_since = asyncio.get_running_loop().time()

    @property
    def serves(self) -> bool:
        return self._serving_since is not None and not self._lost

    @property
    def served_for(self) -> float:
        """The seconds since it began to serve, 0 if it never did."""
        now = asyncio.get_running_loop().time()
        return now - self._serving_since if self._serving_since is not None else 0.0

    def drop(self) -> None:
        """Serve no more: the server does not know the connection."""
        self._lost = True
        self._stirred.set()

    def look_again(self) -> None:
        """End `lost_within` now: the connection's row has changed."""
        self.settled = False
        self._stirred.set()

    async def lost_within(self, seconds: float) -> bool:
        """Wait for the loss of the link or `look_again`, at most this long; return whether it is lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        if not self._lost:
            self._stirred.clear()
        return self._lost

    async def request(self, identifier: str, frame: str) -> Message:
        """Return the reply to `frame`, whose id is `identifier`. Raises `Refused` or `_LinkLost`."""
        if self._lost:
            raise _LinkLost
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
            raise _LinkLost from None
        finally:
            del self._replies[identifier]
        if answer is None:
            raise _LinkLost
        if answer.get("type") == "error":
            raise Refused(answer)
        return answer

    async def close(self) -> None:
        """Close the WebSocket; what arrives before the other side agrees is still received."""
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
        # From a strange server these may be of any type, also one that cannot be hashed.
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
    """Follows no redirect: API Gateway sends none, and it would take the token elsewhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def _connect(url: str, headers: Mapping[str, str]) -> ClientConnection:
    reason = _url_problem(url)
    if reason is None:
        try:
            return await _Connect(
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
        except InvalidProxy:
            # Its text holds the proxy's address, and so perhaps a password.
            reason = "the environment names a proxy whose address is not valid"
        except (ValueError, ImportError) as error:
            # What the libraries say of a bad address may repeat it.
            reason = f"it cannot be used ({type(error).__name__})"
        except (OSError, WebSocketException) as error:
            reason = str(error) or type(error).__name__
    raise Unreachable(
        f"No WebSocket could be opened at {_address(url)}: {reason}.",
        fix="Check the address, including its stage, and that the stack is up.",
    )


@contextmanager
def _understood(url: str) -> Iterator[None]:
    """Turn what a reply of another form leads to into an error that says so."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ClientError(
            f"The server at {_address(url)} does not answer as Muster does.",
            fix="Check the address, and that client and server are of the same version.",
        ) from None


async def _ask(link: _Link, request: Message) -> Message:
    """Return the reply to a request of the client's own. Raises TimeoutError too."""
    identifier = uuid4().hex
    async with asyncio.timeout(REPLY_TIMEOUT_SECONDS):
        return await link.request(identifier, _frame({**request, "id": identifier}))


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


def _frame(message: Message) -> str:
    text = json_text(message, ClientError)
    size = len(text.encode())
    if size > MAX_SENT_BYTES:
        raise TooLarge(
            f"The message takes {size} bytes, more than the {MAX_SENT_BYTES} that API Gateway takes.",
            fix="Send less, or a link to the rest.",
        )
    return text


def _backoff(failures: int) -> float:
    """A random pause whose bound grows with the failures in a row (full jitter)."""
    # Beyond 2**10 the bound is CAP in any case, and 2**1024 is no float any more.
    most = min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2 ** min(failures - 1, 10))
    return random.uniform(0, most)  # noqa: S311 - jitter needs no secrecy


def _checked_token(token: object) -> str:
    """Return a token that a header can carry. The error says nothing of what it holds."""
    stripped = token.strip() if isinstance(token, str) else ""
    if TOKEN.fullmatch(stripped):
        return stripped
    if not isinstance(token, str):
        problem = f"is of the type {type(token).__name__}, not text"
    else:
        problem = "holds characters that no token has" if stripped else "is empty"
    raise ClientError(f"The token {problem}.", fix="Give the JWT alone, as the issuer made it.")


def _not_open() -> ClientClosed:
    return ClientClosed("The client is not open.", fix="Use it inside `async with`.")


def _given(**fields: Any) -> Message:
    return {name: value for name, value in fields.items() if value is not None}


def _lowest_id(instant: datetime) -> str:
    """The lowest UUIDv7 of an instant [RFC 9562]: a place to resume from before any message was seen."""
    return str(UUID(int=int(instant.timestamp() * 1000) << 80 | 0x7 << 76 | 0x2 << 62))


def _url_problem(url: str) -> str | None:
    """What keeps an address from being one of a WebSocket, without any part of it."""
    if not url.isprintable() or " " in url:
        return "it holds a space or a control character"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:
        return "its host or port is not valid"
    if parts.scheme not in ("ws", "wss") or not host:
        return "it is not a ws:// or wss:// address"
    if "@" in parts.netloc:
        return "it holds a user name, but only the token says who connects"
    return "it has a fragment (#)" if parts.fragment else None


def _address(url: str) -> str:
    """An address as it may be shown: without its query, and not at all where a password may be in it."""
    shown = re.split("[?#&;]", url)[0]
    return shown if shown and "@" not in url and shown.isprintable() else "that address"


def _handshake_fix(status: int) -> str:
    match status:
        case 401:
            return "Get a fresh token: this one is missing, expired or not signed for this deployment."
        case 403:
            return "Check that the user exists and is active; `muster logs connect` shows the reason."
        case 429:
            return "Try again shortly: too many clients are connecting at once."
        case _ if status >= 500:
            return "Try again; if it persists, read the log: `muster logs connect`."
        case _:
            return "Check the address, including its stage."
