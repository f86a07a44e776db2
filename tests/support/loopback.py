"""An `@connections` endpoint on the loopback interface that answers as a test says, and posts to it."""

import asyncio
import itertools
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import unquote

from functions.shared.posting.gateway import Gateway, Posted, Recipient
from tests.support.functions import Keys

STAGE = "/live"
BODY = '{"type":"alert","payload":{"text":"é🌍"}}'.encode()
LONG = 20.0
"""A time in seconds that no test reaches."""


@dataclass(frozen=True)
class Request:
    """A post as it arrived. `at` is in seconds of `time.monotonic`; `stream` numbers the TCP connection."""

    connection_id: str
    headers: Mapping[str, str]
    body: bytes
    at: float
    stream: int


@dataclass(frozen=True)
class Answer:
    """The answer to a post, in the pieces in which it is sent, and what the server then does."""

    pieces: tuple[bytes, ...] = ()
    then: Literal["keep", "close", "reset", "silence"] = "keep"


def answer(status: int, *, close: bool = False) -> Answer:
    """An answer like API Gateway's. With `close` it has `Connection: close`, and the server closes."""
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
"""The server closes without `Connection: close`. (A reset could overtake the answer.)"""

Decide = Callable[[Request], Awaitable[Answer]]


class Endpoint:
    """A server in its own thread, used as a context manager."""

    def __init__(self, decide: Decide, tls: ssl.SSLContext | None = None) -> None:
        """`decide` returns the answer to a request; see `scripted`."""
        self._decide = decide
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self.open = 0
        """The number of open TCP connections."""
        self.requests: list[Request] = []
        self.most_open = 0
        """The highest number of TCP connections that were open at once."""
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
        """The number of posts to this connection that have arrived."""
        return sum(request.connection_id == connection_id for request in self.requests)

    @property
    def streams(self) -> int:
        """The number of TCP connections that carried a request."""
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
            pass  # the client closed the connection, or the test ended
        finally:
            self._tasks.discard(task)
            writer.close()
            self.open -= 1

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: int
    ) -> bool:
        """Answer one request. Return whether the connection stays open."""
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
    """Answer the posts to a connection with its script, in order. The last answer is repeated."""
    positions: dict[str, int] = {}

    async def decide(request: Request) -> Answer:
        script = scripts.get(request.connection_id, otherwise)
        position = positions.get(request.connection_id, 0)
        positions[request.connection_id] = position + 1
        return script[min(position, len(script) - 1)]

    return decide


@dataclass
class Session:
    """The part of a botocore session that a gateway uses. Its keys can be replaced at any time."""

    keys: Keys = field(default_factory=lambda: Keys("AKIDFIRST", "secret", None))

    def get_config_variable(self, name: str) -> str:
        return {"region": "eu-west-1"}[name]

    def get_credentials(self) -> "Session":
        return self

    def get_frozen_credentials(self) -> Keys:
        return self.keys


@contextmanager
def gateway_to(url: str, concurrency: int = 8, session: Session | None = None) -> Iterator[Gateway]:
    """A gateway that is closed at the end of the `with` block."""
    with closing(Gateway(url, session or Session(), concurrency)) as opened:
        yield opened


def old(*connection_ids: str) -> list[Recipient]:
    """Recipients past their handshake."""
    return [Recipient(name, f"user of {name}", time.time() - 3600) for name in connection_ids]


def young(*connection_ids: str) -> list[Recipient]:
    """Recipients that may still be in their handshake."""
    return [Recipient(name, f"user of {name}", time.time()) for name in connection_ids]


def post(url: str, recipients: Sequence[Recipient], seconds: float = LONG, concurrency: int = 8) -> Posted:
    """Post BODY through a new gateway, with a deadline in this many seconds."""
    with gateway_to(url, concurrency) as opened:
        return opened.post(recipients, BODY, time.monotonic() + seconds)


def outcomes(posted: Posted) -> dict[str, str]:
    """The outcomes by connection id."""
    return {recipient.connection_id: outcome for recipient, outcome in posted.outcomes}
