"""A proxy between Deliver and `@connections` that fails by script and by seed, and records every post.

Without an upstream it simulates `@connections`: a post that it accepts is delivered. With one, such as the
emulator, it forwards what it accepts, and answers what the upstream answers.
"""

import asyncio
import contextlib
import random
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")


@dataclass(frozen=True)
class Act:
    """What the proxy does with one post."""

    status: int | None = 200
    """The status of the answer; None sends no answer."""
    takes: bool = False
    """Whether the recipient gets the message although the answer is not 200."""
    after: float = 0.0
    """Seconds before the answer."""
    ending: str = ""
    """How the answer fails: "reset", "cut" after half of it, or "garbage" instead of it."""

    @property
    def taken(self) -> bool:
        """Whether the recipient gets the message."""
        return self.takes or self.status == 200


TAKEN = Act(200)
GONE = Act(410)
THROTTLED = Act(429)
FORBIDDEN = Act(403)
TOO_LARGE = Act(413)
BROKEN, BAD_GATEWAY, UNAVAILABLE, GATEWAY_TIMEOUT = (Act(status) for status in (500, 502, 503, 504))
SILENT = Act(None)
RESET_BEFORE = Act(None, ending="reset")
RESET_AFTER = Act(None, ending="reset", takes=True)
CUT = Act(200, ending="cut")
GARBAGE = Act(None, ending="garbage")

FAULTS = {
    "410": GONE,
    "429": THROTTLED,
    "403": FORBIDDEN,
    "413": TOO_LARGE,
    "500": BROKEN,
    "502": BAD_GATEWAY,
    "503": UNAVAILABLE,
    "504": GATEWAY_TIMEOUT,
    "silence": SILENT,
    "reset before": RESET_BEFORE,
    "reset after": RESET_AFTER,
    "cut": CUT,
    "garbage": GARBAGE,
}


def late(seconds: float) -> Act:
    """The post is delivered, and answered after this many seconds."""
    return Act(200, after=seconds)


@dataclass(frozen=True)
class Post:
    """One request as it arrived: `attempt` counts its connection's posts and `number` all, both from 0."""

    number: int
    connection_id: str
    attempt: int
    body: bytes
    headers: Mapping[str, str]
    arrived: float
    """Seconds of `time.monotonic`."""
    act: Act = TAKEN
    answered: float | None = None


@dataclass
class Script:
    """What to do with each post. The first of these fields that matches decides.

    `connections` gives, per connection id, what to do with its first post, its second, ... and, with the last
    act, all that follow. `numbers` does the same for the posts of all connections by their number. `decide`
    may decide about the rest. Each remaining post fails with probability `chance`, by one of `faults`; the
    choice depends only on `seed`, connection and attempt. All others get `otherwise`. Without `passes_on`,
    the proxy simulates `@connections` even if it has an upstream.
    """

    connections: Mapping[str, Sequence[Act]] = field(default_factory=dict)
    numbers: Mapping[int, Act] = field(default_factory=dict)
    decide: Callable[[Post], Act | None] = lambda post: None
    chance: float = 0.0
    seed: int = 0
    faults: Sequence[Act] = tuple(FAULTS.values())
    otherwise: Act = TAKEN
    passes_on: bool = True

    def act(self, post: Post) -> Act:
        if acts := self.connections.get(post.connection_id):
            return acts[min(post.attempt, len(acts) - 1)]
        if decided := self.numbers.get(post.number) or self.decide(post):
            return decided
        luck = random.Random(f"{self.seed}/{post.connection_id}/{post.attempt}")
        return luck.choice(self.faults) if luck.random() < self.chance else self.otherwise


class FaultProxy:
    """A running proxy, as a context manager. Its server has its own thread and event loop."""

    def __init__(self, upstream: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        """`upstream` is a connections endpoint over plain HTTP; with `tls`, the proxy serves TLS."""
        self.script = Script()
        self.posts: list[Post] = []
        """Every post, by its number."""
        self.taken: Counter[str] = Counter()
        """How many times the message of each connection was taken."""
        self.opened = 0
        """How many HTTP connections were accepted."""
        self.port = 0
        self._upstream = urlsplit(upstream) if upstream else None
        self._tls = tls
        self._attempts: Counter[str] = Counter()
        self._open: set[asyncio.StreamWriter] = set()
        self._idle: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)

    @property
    def endpoint(self) -> str:
        """The connections endpoint to post to."""
        stage = self._upstream.path if self._upstream else "/live"
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}{stage}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._serve())
        return self

    def __exit__(self, *exception: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self, script: Script | None = None) -> None:
        """Clear the record, and follow another script."""
        self.script = script or Script()
        self.posts, self.taken, self._attempts = [], Counter(), Counter()

    def close_idle(self) -> int:
        """Close all idle HTTP connections, and return their number."""

        async def close() -> int:
            closed = list(self._idle)
            for writer in closed:
                writer.close()
            return len(closed)

        return self._run(close())

    def posts_to(self, connection_id: str) -> list[Post]:
        """The posts to one connection, in the order of their arrival."""
        return [post for post in self.posts if post.connection_id == connection_id]

    def _run(self, task: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(timeout=10)

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", 0, ssl=self._tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        # Clients may abort a TLS handshake.
        self._loop.set_exception_handler(lambda loop, context: None)

    async def _stop(self) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.02)  # the loop releases closed connections in later iterations

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self._open.add(writer)
        try:
            # Clients close or reset connections when they no longer need them.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    self._idle.add(writer)
                    head = await reader.readuntil(b"\r\n\r\n")
                    self._idle.discard(writer)
                    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
                    body = await reader.readexactly(int(length[1]) if length else 0)
                    await self._treat(self._note(head, body), head, reader, writer)
        finally:
            self._idle.discard(writer)
            self._open.discard(writer)
            writer.close()

    def _note(self, head: bytes, body: bytes) -> Post:
        first, *rest = head.decode().strip().split("\r\n")
        connection_id = unquote(first.split()[1].rpartition("/")[2])
        headers = dict(line.split(": ", 1) for line in rest)
        attempt = self._attempts[connection_id]
        self._attempts[connection_id] += 1
        post = Post(len(self.posts), connection_id, attempt, body, headers, time.monotonic())
        self.posts.append(post)
        return post

    async def _treat(
        self, post: Post, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        act = self.script.act(post)
        if act.taken and self._upstream and self.script.passes_on:
            status = await self._pass_on(head, post.body)
            act = act if status == 200 else Act(status)
        self.posts[post.number] = post = replace(post, act=act)
        self.taken[post.connection_id] += act.taken
        if act.after:
            await asyncio.sleep(act.after)
        if act.status is None and not act.ending:
            await reader.read()
            raise ConnectionAbortedError
        answer = f"HTTP/1.1 {act.status} As Told\r\ncontent-length: 16\r\n\r\n".encode() + b'{"message": "x"}'
        if act.ending == "reset":
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            raise ConnectionAbortedError
        if act.ending:
            writer.write(b"What?\r\n\r\n" if act.ending == "garbage" else answer[: len(answer) // 2])
            raise ConnectionAbortedError
        # Record it first: the test may read it as soon as the client has the answer.
        self.posts[post.number] = replace(post, answered=time.monotonic())
        writer.write(answer)
        await writer.drain()

    async def _pass_on(self, head: bytes, body: bytes) -> int:
        assert self._upstream
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        try:
            writer.write(head[:-2] + b"connection: close\r\n\r\n" + body)
            status = await reader.readline()
            await reader.read()
            return int(status.split()[1])
        finally:
            writer.close()
