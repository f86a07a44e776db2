"""The `@connections` endpoint on the loopback interface, as well or as badly behaved as a test wants."""

import asyncio
import itertools
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import unquote

from functions.shared.posting.gateway import Gateway
from tests.support.functions import Keys

STAGE = "/live"


@dataclass(frozen=True)
class Request:
    """A post as it arrived, and when (`time.monotonic`), through the TCP connection of this number."""

    connection_id: str
    headers: Mapping[str, str]
    body: bytes
    at: float
    stream: int


@dataclass(frozen=True)
class Answer:
    """What a post is answered with, piece by piece, and what becomes of the TCP connection then."""

    pieces: tuple[bytes, ...] = ()
    then: Literal["keep", "close", "reset", "silence"] = "keep"


def answer(status: int, *, close: bool = False) -> Answer:
    """An answer as API Gateway gives it; with `close` it says that the connection is closed after it."""
    return Answer((_http(status, close),), "close" if close else "keep")


def _http(status: int, close: bool) -> bytes:
    body = b"" if status == 200 else json.dumps({"message": "No.", "connectionId": "c"}).encode()
    fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    fields += "Connection: close\r\n" if close else ""
    return f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n".encode() + body


OK = answer(200)
RESET = Answer(then="reset")
SILENT = Answer(then="silence")
TRUNCATED = Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n",), "close")
BODY_CUT = Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345",), "close")
GARBAGE = Answer((b"SSH-2.0-OpenSSH_9.9\r\n\r\n",), "close")
IN_PIECES = Answer((b"HTTP/1.1 2", b"00 OK\r\nContent-Length: 4\r", b"\n\r\n12", b"34"))
CHUNKED = Answer((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", b"0\r\n", b"\r\n"))
DIES_LATER = Answer(OK.pieces, "close")
"""Closes without having said so. (A reset could overtake the answer.)"""

Decide = Callable[[Request], Awaitable[Answer]]


class Endpoint:
    """A server in a thread of its own, for as long as its `with` block."""

    def __init__(self, decide: Decide, tls: ssl.SSLContext | None = None) -> None:
        """`decide` answers each request; see `scripted`."""
        self._decide = decide
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self.open = 0
        """TCP connections that are open now."""
        self.requests: list[Request] = []
        self.most_open = 0
        """The most TCP connections that were open at once."""
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}{STAGE}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def posts_to(self, connection_id: str) -> int:
        """How many posts to this connection have arrived."""
        return sum(request.connection_id == connection_id for request in self.requests)

    @property
    def streams(self) -> int:
        """How many TCP connections carried a request."""
        return len({request.stream for request in self.requests})

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, limit=2**24)

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        stream = next(self._numbers)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            while await self._exchange(reader, writer, stream):
                pass
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass  # the client has hung up, or the test is over
        finally:
            self._tasks.discard(task)
            writer.close()
            self.open -= 1

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: int
    ) -> bool:
        """Answer one request; return whether the connection stays."""
        line, *fields = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("ascii").split("\r\n")
        method, target, version = line.split(" ")
        assert (method, version) == ("POST", "HTTP/1.1")
        assert target.startswith(f"{STAGE}/@connections/")
        headers = dict(field.split(": ", 1) for field in fields)
        body = await reader.readexactly(int(headers["content-length"]))
        request = Request(unquote(target.rpartition("/")[2]), headers, body, time.monotonic(), stream)
        self.requests.append(request)
        given = await self._decide(request)
        for piece in given.pieces:
            writer.write(piece)
            await writer.drain()
            if piece is not given.pieces[-1]:
                await asyncio.sleep(0.005)
        if given.then == "silence":
            await asyncio.Event().wait()
        if given.then == "reset":
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return given.then == "keep"


def scripted(scripts: Mapping[str, Sequence[Answer]], otherwise: Sequence[Answer] = (OK,)) -> Decide:
    """Answer the posts to each connection as its script says; the last answer is repeated."""
    positions: dict[str, int] = {}

    async def decide(request: Request) -> Answer:
        script = scripts.get(request.connection_id, otherwise)
        position = positions.get(request.connection_id, 0)
        positions[request.connection_id] = position + 1
        return script[min(position, len(script) - 1)]

    return decide


@dataclass
class Session:
    """As much of a botocore session as a gateway asks for; its keys may be exchanged at any time."""

    keys: Keys = field(default_factory=lambda: Keys("AKIDFIRST", "secret", None))

    def get_config_variable(self, name: str) -> str:
        return {"region": "eu-west-1"}[name]

    def get_credentials(self) -> "Session":
        return self

    def get_frozen_credentials(self) -> Keys:
        return self.keys


@contextmanager
def gateway_to(url: str, concurrency: int = 8, session: Session | None = None) -> Iterator[Gateway]:
    """A gateway that is taken apart afterwards: a function keeps its own for good, a test must not."""
    opened = Gateway(url, session or Session(), concurrency)
    try:
        yield opened
    finally:
        wires = opened._wires
        for wire in list(wires._watched):
            wires.drop(wire)
        wires._selector.close()
        wires._resolver.shutdown()
