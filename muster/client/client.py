"""The client: opens connections one after the other, and runs what its `Inbox` decides."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, cast
from uuid import uuid4

from muster.client.errors import (
    ClientClosed,
    ClientError,
    HandshakeRefused,
    Refused,
    ReplyTimeout,
    Unreachable,
)
from muster.client.inbox import HEARTBEAT_SECONDS, Inbox, Message, backoff
from muster.client.link import (
    REPLY_TIMEOUT_SECONDS,
    Link,
    LinkLost,
    encode_frame,
    open_websocket,
    public_address,
)
from muster.types import Ack, Envelope, Offline, Pong, ReceivedEnvelope, Renewed, Resumed, Target

Token = str | Callable[[], str | Awaitable[str]]
"""A JWT, or a callable that returns a fresh one and is called before each handshake."""

STABLE_SECONDS = 30.0
"""After a connection has served this long, the pause before a reconnection starts from its base again."""

ROTATION_SECONDS = 300.0
"""How long functions may still use a key that was rotated [docs/operations.md]. For this long, a 401 for a
fresh token is not final."""

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""A bearer token [RFC 6750]; a JWT is one."""

logger = logging.getLogger("muster.client")


class Client:
    """A connection that stays open: it reconnects, resumes, and moves on before API Gateway's time limits.

    Iteration yields the messages sent to the user's audiences, as `schemas/envelope.schema.json` describes
    them.

    - The server delivers at least once; the client yields each message id once (of the last REMEMBERED_IDS).
    - Everything sent after `async with` was entered is yielded, including what was sent while the connection
      was lost, as long as the server retains it (7 days by default). A message whose post failed although the
      connection is open comes with the next heartbeat.
    - After a reconnection, missed messages come oldest first. New messages wait for them, for HOLD_SECONDS at
      most, and not when the server fails to answer the `resume`. Otherwise messages come in the order of
      arrival. A message that a `resume` brings after a newer one was yielded has `"late": true` added to it.
    - Messages wait in memory, without limit, until they are iterated. Iteration ends, or raises, only after
      everything that arrived was yielded.

    The client replaces a connection before API Gateway's two hours and, if `token` is a callable, before the
    token expires: it opens the new connection before it closes the old one. If `token` is a string, the
    server stops sending when that token expires.

    The client reconnects with exponential backoff and full jitter. The backoff starts again once a connection
    has served for STABLE_SECONDS. Reconnecting ends, and with it iteration and every request, when

    - the server refuses the token or the user (`HandshakeRefused`). If `token` is a callable, a 401 is final
      only ROTATION_SECONDS after the first; until then the client calls it again.
    - the token's callable raises; iteration raises the same exception. After an `OSError` other than
      `PermissionError`, such as `ConnectionError`, a timeout or a failure of urllib, the client calls it
      again.

    One task may iterate, and any number may send. A client is used once.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        position: str | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        """`url` is the deployment's output websocket_url.

        `position` is the `position` of an earlier client: iteration begins with what that client had not
        yielded. Messages from up to four minutes before may come again, because recording takes time. A
        position is valid for the role and shelter that its client had. If the user has moved since, the new
        client gets what the new audiences were sent from that position on; `resume()` returns what came
        before it.

        `heartbeat` is the number of seconds between two pings, each followed by a look for missed messages.
        """
        self._url = url
        self._token = token
        self._inbox = Inbox(position, heartbeat=heartbeat, renewable=callable(token))
        # Set at every change that a task may wait for: a message, a link that serves, the end.
        self._changed = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        # The link that serves, or served last; and every link that is not closed yet.
        self._link: Link | None = None
        self._links: set[Link] = set()
        self._hold_timer: asyncio.TimerHandle | None = None
        self._failures = 0
        self.handshake_seconds = 0.0
        """How long the latest handshake took."""

    def __repr__(self) -> str:
        return f"<Client {public_address(self._url)}>"

    @property
    def position(self) -> str | None:
        """Where a later client resumes: store it after handling a message, and pass it as `position=`.

        It is the last id that a `resume` has brought, as far as iteration has come. Before the first resume
        it is the lowest id of the moment when the first connection began; before that, None. It is never the
        last id seen: a message that arrives by itself says nothing about those before it, whose posts may
        have failed.
        """
        return self._inbox.position

    @property
    def duplicates(self) -> int:
        """How many messages were posted again and dropped. What a resume repeats does not count."""
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
        """Close the connection. Iteration ends after what has already arrived. Repeatable.

        If it is cancelled, it cuts the connection without a closing handshake.
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

    def __aiter__(self) -> AsyncIterator[ReceivedEnvelope]:
        return self

    async def __anext__(self) -> ReceivedEnvelope:
        while True:
            message = self._inbox.take()
            if message is not None:
                return cast(ReceivedEnvelope, message)
            if self._runner is None:
                raise _not_open()
            if self._over:
                raise self._failure or StopAsyncIteration
            await self._change()

    async def send(self, message: Mapping[str, Any], *, timeout: float = REPLY_TIMEOUT_SECONDS) -> Message:
        """Send a client message and return the server's reply to it. Raises `Refused` for an error.

        `message` gets an `id` unless it has one. If the connection is lost before the reply, the message is
        sent again on the next connection, which is safe because the server acts once per id. Raises
        `ReplyTimeout` after `timeout` seconds altogether.
        """
        request = {"id": uuid4().hex, **message}
        identifier = request["id"]
        if not (isinstance(identifier, str) and REQUEST_ID.fullmatch(identifier)):
            # The server could not refer to it in its reply.
            raise ClientError(
                f"{identifier!r} cannot identify a message.",
                fix="Use text of 1 to 64 of the characters A-Z, a-z, 0-9, - and _, or leave the id out.",
            )
        frame = encode_frame(request)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    link = await self._serving_link()
                    try:
                        reply = await link.request(identifier, frame)
                    except LinkLost:
                        continue
                    if reply.get("type") != "error":
                        return reply
                    with self._expecting_muster():
                        refusal = Refused(reply)
                    if refusal.code != "unknown_connection":
                        raise refusal
                    link.drop()
        except TimeoutError as error:
            raise ReplyTimeout(
                f"The server did not answer {message.get('action', 'the message')} within {timeout:g} s.",
                fix=f"Send it again with the id {identifier}: the server acts once per id.",
            ) from error

    async def broadcast(
        self,
        target: Target | Mapping[str, Any],
        payload: Mapping[str, Any],
        *,
        offline: Offline | None = None,
    ) -> Ack:
        """Send a broadcast; return its ack, whose `id` is the message's."""
        request = _given(action="broadcast", target=target, payload=payload, offline=offline)
        return cast(Ack, await self.send(request))

    async def alert(
        self,
        target: Target | Mapping[str, Any],
        payload: Mapping[str, Any],
        *,
        offline: Offline | None = None,
    ) -> Ack:
        """Send an alert; return its ack, whose `id` is the message's."""
        request = _given(action="alert", target=target, payload=payload, offline=offline)
        return cast(Ack, await self.send(request))

    async def shelter_update(
        self,
        shelter_id: str,
        payload: Mapping[str, Any],
        *,
        target: Target | Mapping[str, Any] | None = None,
        offline: Offline | None = None,
    ) -> Ack:
        """Send an update about a shelter, to its own people unless a target is given; return its ack."""
        request = _given(
            action="shelter_update", shelterId=shelter_id, payload=payload, target=target, offline=offline
        )
        return cast(Ack, await self.send(request))

    async def ping(self) -> Pong:
        """Return the server's pong. Whatever was posted to this connection before it has then arrived."""
        return cast(Pong, await self.send({"action": "ping"}))

    async def renew(self, token: str | None = None) -> Renewed:
        """Extend the connection with `token`, or with a fresh one from the token's callable.

        The connection takes over the role and shelter that the user has now. If they have changed, iteration
        also yields what the new audiences were sent since this connection was opened. A user who may no
        longer connect is refused (`Refused` with the code forbidden), and iteration ends with
        `HandshakeRefused`.
        """
        fresh = await self._fresh_token() if token is None else _checked_token(token)
        renewed = await self.send({"action": "renew", "token": fresh})
        if self._link:
            self._link.session.renewed(asyncio.get_running_loop().time())
            self._link.stir()
        return cast(Renewed, renewed)

    async def resume(self, after: str | None = None) -> list[Envelope]:
        """Return what the server retains for this user since the id `after`, or all of it, oldest first.

        For history: it changes neither `position` nor what iteration yields.
        """
        messages: list[Envelope] = []
        request = _given(action="resume", after=after)
        while True:
            page = cast(Resumed, await self.send(request))
            messages += page["messages"]
            if not page["more"]:
                return messages
            request = {"action": "resume", "cursor": page["cursor"]}

    @property
    def _failure(self) -> BaseException | None:
        """The exception that ended the client, unless the program closed it."""
        runner = self._runner
        return runner.exception() if runner and runner.done() and not runner.cancelled() else None

    @property
    def _over(self) -> bool:
        """Whether nothing can arrive any more."""
        return self._runner is not None and self._runner.done() and not self._links

    def _wake(self, _: object = None) -> None:
        self._changed.set()

    async def _change(self) -> None:
        """Wait for the next change. Check the condition before, without an await in between."""
        self._changed.clear()
        await self._changed.wait()

    async def _serving_link(self) -> Link:
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
            self._inbox.release()
            self._time_hold()
            self._wake()
            for link in self._links:
                self._retire(link)

    async def _tend(self, link: Link) -> bool:
        """Send the requests of a connection's session when they are due.

        Return True when the connection must be replaced, and False when it is lost.
        """
        loop = asyncio.get_running_loop()
        session = link.session
        while True:
            if session.must_be_replaced(loop.time()):
                logger.info("replacing the connection before its time is up")
                return True
            request = session.request(loop.time())
            if request is None:
                lost = await link.lost_within(min(session.ask_at, session.replace_at) - loop.time())
            else:
                lost = not await self._ask(link, request)
            if lost:
                logger.info("connection lost")
                return False

    async def _ask(self, link: Link, request: Message) -> bool:
        """Put a session's request to the server; return whether the link still works."""
        loop = asyncio.get_running_loop()
        session = link.session
        identifier = uuid4().hex
        reason = None
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_SECONDS):
                reply = await link.request(identifier, encode_frame({**request, "id": identifier}))
        except LinkLost:
            session.lost = True
        except TimeoutError:
            session.unanswered(loop.time())
            reason = "no answer"
        else:
            with self._expecting_muster():
                session.answered(reply, loop.time())
            if reply.get("type") == "error":
                reason = reply.get("code")
        if self._inbox.serving is None:
            raise Unreachable(
                f"The server at {public_address(self._url)} connects but does not answer pings.",
                fix="Read the log of the function: `muster logs default`.",
            )
        if session.lost:
            return False
        if reason:
            logger.info(
                "the server does not resume (%s), asking again in %.1f s",
                reason,
                session.ask_at - loop.time(),
            )
        elif session.idle and session.resumed:
            logger.info("resumed: %d missed", session.resumed)
        if self._inbox.serving is session:
            self._serve(link)
        self._time_hold()
        self._wake()
        return True

    def _serve(self, link: Link) -> None:
        """Send by this link from now on, and close the one before."""
        if self._link is not link:
            previous, self._link = self._link, link
            if previous:
                self._retire(previous)
        link.serve()

    def _receive(self, message: Message) -> None:
        self._inbox.post(message)
        self._wake()

    def _time_hold(self) -> None:
        """Set a timer for the end of the hold, or stop it when nothing is held."""
        if self._hold_timer:
            self._hold_timer.cancel()
            self._hold_timer = None
        if self._inbox.release_at is not None:
            loop = asyncio.get_running_loop()
            self._hold_timer = loop.call_at(self._inbox.release_at, self._end_hold)

    def _end_hold(self) -> None:
        self._inbox.advance(asyncio.get_running_loop().time())
        self._time_hold()
        self._wake()

    async def _reopen(self) -> Link:
        refused_at: float | None = None
        while True:
            if self._failures:
                delay = backoff(self._failures)
                logger.info("reconnecting in %.1f s", delay)
                await asyncio.sleep(delay)
            try:
                return await self._open()
            except HandshakeRefused as refusal:
                if refusal.status == 401 and callable(self._token):
                    # A key may be rotating: the function may not know the one that signed the token yet.
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
                # Its text comes from the application's callable and may contain a secret.
                logger.info("not connected: the token's callable raised %s", type(error).__name__)
            self._failures += 1

    async def _open(self) -> Link:
        """Open a WebSocket."""
        loop = asyncio.get_running_loop()
        headers = {"Authorization": f"Bearer {await self._fresh_token()}"}
        started = loop.time()
        socket = await open_websocket(self._url, headers)
        self.handshake_seconds = loop.time() - started
        link = Link(socket, self._inbox.open(loop.time()), self._receive)
        self._time_hold()
        self._links.add(link)
        logger.info("connected")
        return link

    def _retire(self, link: Link) -> None:
        """Close a link in the background. What still arrives by it is yielded."""
        if link.closing is None:
            link.closing = asyncio.create_task(link.close())
            link.closing.add_done_callback(lambda _: self._links.discard(link))
            link.closing.add_done_callback(self._wake)

    async def _fresh_token(self) -> str:
        token = self._token if isinstance(self._token, str) else self._token()
        return _checked_token(await token if inspect.isawaitable(token) else token)

    @contextmanager
    def _expecting_muster(self) -> Iterator[None]:
        """Translate the exceptions that a reply of an unknown form causes."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ClientError(
                f"The server at {public_address(self._url)} does not answer as Muster does.",
                fix="Check the address, and that client and server are of the same version.",
            ) from None


def _checked_token(token: object) -> str:
    """Return a token that a header can carry. The error contains no part of it."""
    stripped = token.strip() if isinstance(token, str) else ""
    if TOKEN.fullmatch(stripped):
        return stripped
    if not isinstance(token, str):
        problem = f"is of the type {type(token).__name__}, not text"
    else:
        problem = "contains characters that no token has" if stripped else "is empty"
    raise ClientError(f"The token {problem}.", fix="Give the JWT alone, as the issuer made it.")


def _not_open() -> ClientClosed:
    return ClientClosed("The client is not open.", fix="Use it inside `async with`.")


def _given(**fields: Any) -> Message:
    return {name: value for name, value in fields.items() if value is not None}
