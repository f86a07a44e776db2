"""Posting to WebSocket connections through API Gateway's `@connections` callbacks.

`Gateway.post` carries one body to many connections at once over kept-alive HTTP connections. Each recipient
ends in exactly one outcome, whatever happens to the others:

    delivered   API Gateway took the message for the connection (200)
    gone        the connection is closed (410)
    failed      refused (4xx), or still failing when the attempts or the time ran out

At least once: an attempt whose answer was lost may have been delivered, and is repeated.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from functions.shared.connections import epoch
from functions.shared.signing import PostSigner

Outcome = Literal["delivered", "gone", "failed"]

HANDSHAKE_SECONDS = 10
"""A connection younger than this may answer 410 because its `$connect` has stored the row but API Gateway has
not opened the socket yet: its row is kept, and the post is tried again."""

ATTEMPTS = 5
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 2.0
POST_TIMEOUT_SECONDS = 5.0
"""A post takes milliseconds; one that takes this long is repeated on a fresh connection."""

SIGNATURE_LIFETIME_SECONDS = 60
"""Signatures hold for five minutes; a minute leaves room for clocks that differ, and follows rotated keys."""


@dataclass(frozen=True)
class Recipient:
    """A connection to post to, as the fan-out's query found it; `connected_at` is in epoch seconds."""

    connection_id: str
    user_id: str
    connected_at: float

    def in_handshake(self) -> bool:
        """Whether the connection may still be opening; see HANDSHAKE_SECONDS."""
        return time.time() - self.connected_at < HANDSHAKE_SECONDS

    @classmethod
    def parse(cls, row: dict[str, str]) -> "Recipient":
        """From a `connections` entry of a delivery batch."""
        return cls(row["connectionId"], row["userId"], epoch(row["connectedAt"]))


@dataclass
class Posted:
    """What became of a batch; `outcomes` holds every recipient once, in the order given."""

    outcomes: list[tuple[Recipient, Outcome]] = field(default_factory=list)
    retries: int = 0

    def count(self, outcome: Outcome) -> int:
        """How many recipients ended so."""
        return sum(1 for _, other in self.outcomes if other == outcome)


class Gateway:
    """The connections endpoint of one API stage. Keep it: its HTTP connections outlive a call."""

    def __init__(self, endpoint: str, session: Any, concurrency: int) -> None:
        """Open nothing yet.

        `endpoint` is `https://host/stage`; `session` a boto3 session, asked for credentials and region;
        `concurrency` the most posts in flight, and so the most HTTP connections opened.
        """
        self._endpoint = endpoint.rstrip("/")
        self._session = session
        self._pool = _Pool(self._endpoint, concurrency)

    async def post(self, recipients: Sequence[Recipient], body: bytes, deadline: float) -> Posted:
        """Post `body` to every recipient; return within a moment of `deadline` (`time.monotonic` seconds).

        Transient answers (429, 5xx, timeouts, resets, and 410 during the handshake) are repeated with full
        jitter, up to ATTEMPTS posts each. A recipient that waits holds no HTTP connection, so none waits for
        another.
        """
        posted = Posted()
        signer = self._signer(body)

        async def one(recipient: Recipient) -> Outcome:
            outcome: Outcome = "failed"
            for attempt in range(ATTEMPTS):
                if attempt:
                    ceiling = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**attempt)
                    pause = random.uniform(0, ceiling)  # noqa: S311 - jitter needs no secrecy
                    if time.monotonic() + pause >= deadline:
                        break
                    posted.retries += 1
                    await asyncio.sleep(pause)
                status = await self._pool.request(signer().head(recipient.connection_id) + body, deadline)
                match status:
                    case 200:
                        return "delivered"
                    case 410:
                        outcome = "gone"
                        if not recipient.in_handshake():
                            break
                    case None | 429:
                        outcome = "failed"
                    case _:
                        outcome = "failed"
                        if status < 500:
                            break
            return outcome

        outcomes = await asyncio.gather(*(one(recipient) for recipient in recipients))
        posted.outcomes = list(zip(recipients, outcomes, strict=True))
        return posted

    def _signer(self, body: bytes) -> Callable[[], PostSigner]:
        """The signer to use now: a new one each SIGNATURE_LIFETIME_SECONDS, or when credentials rotate."""
        made: tuple[float, Any, PostSigner] | None = None

        def current() -> PostSigner:
            nonlocal made
            credentials = self._session.get_credentials().get_frozen_credentials()
            now = time.monotonic()
            if made is None or now - made[0] >= SIGNATURE_LIFETIME_SECONDS or made[1] != credentials:
                region = self._session.region_name
                made = (now, credentials, PostSigner(self._endpoint, region, credentials, body))
            return made[2]

        return current


class _Pool:
    """Kept-alive HTTP/1.1 connections to one origin, opened when needed and reused last in, first out."""

    def __init__(self, endpoint: str, size: int) -> None:
        url = urlsplit(endpoint)
        self._host = url.hostname or ""
        self._port = url.port or {"https": 443, "http": 80}[url.scheme]
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._slots = asyncio.Semaphore(size)
        self._idle: list[_Stream] = []

    async def request(self, request: bytes, deadline: float) -> int | None:
        """The status that answers `request`; None when none came by POST_TIMEOUT_SECONDS or `deadline`.

        A kept connection that turns out dead, as all do after a Lambda freeze, is replaced at once and does
        not count as a failure.
        """
        async with self._slots:
            try:
                async with asyncio.timeout(min(POST_TIMEOUT_SECONDS, deadline - time.monotonic())):
                    while self._idle:
                        try:
                            return await self._exchange(self._idle.pop(), request)
                        except _BROKEN:
                            continue
                    stream = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
                    return await self._exchange(stream, request)
            except (TimeoutError, *_BROKEN):
                return None

    async def _exchange(self, stream: "_Stream", request: bytes) -> int:
        reader, writer = stream
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            fields = dict(line.split(b":", 1) for line in head.split(b"\r\n")[1:-2])
            if b"chunked" in fields.get(b"transfer-encoding", b""):
                while size := int(await reader.readline(), 16):
                    await reader.readexactly(size + 2)
                await reader.readuntil(b"\r\n")
            else:
                await reader.readexactly(int(fields.get(b"content-length", 0)))
            status = int(head[9:12])
        except BaseException:
            writer.close()
            raise
        if b"close" in fields.get(b"connection", b""):
            writer.close()
        else:
            self._idle.append(stream)
        return status


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_BROKEN = (OSError, EOFError, asyncio.LimitOverrunError, ValueError)
"""What a broken connection or a malformed answer raises; TLS and DNS failures are OSErrors."""
