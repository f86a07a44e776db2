"""Posting to WebSocket connections through API Gateway's `@connections` callbacks.

`Gateway.post` carries one body to many connections at once over kept-alive HTTP connections, from one thread
and without an event loop: see docs/delivery.md for what that is worth. Each recipient ends in exactly one
outcome, whatever happens to the others:

    delivered   API Gateway took the message for the connection (200)
    gone        the connection is closed (410)
    failed      refused (4xx), or still failing when the attempts or the time ran out

At least once: a post whose answer was lost may have been delivered, and is repeated.
"""

import heapq
import itertools
import math
import os
import random
import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from functions.shared.connections import HANDSHAKE_SECONDS, epoch
from functions.shared.signing import PostSigner
from functions.shared.wire import BROKEN, Address, Wire

Outcome = Literal["delivered", "gone", "failed"]

ATTEMPTS = 5
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 2.0

CROWD = 4
THROTTLED_SECONDS = 10.0
"""A 429 is one client's full buffer, or the whole account's quota. When it meets at least so many recipients
of a batch, and a tenth of them, it is the quota: then posts are repeated so long, at the cost of no attempt,
while another broadcast's burst passes. A single client's buffer gets ATTEMPTS like any other failure, for the
next page of the partition waits for it."""

POST_TIMEOUT_SECONDS = 3.0
POST_TIMEOUTS = 2
"""A post takes milliseconds; one that takes this long is repeated on a fresh connection, once: the batch, and
with it the partition's next page, waits for the last of its posts."""

IDLE_SECONDS = 20
"""A connection that idled longer is not used again: it may have died without a word, in a Lambda freeze most
likely."""

ADDRESS_SECONDS = 60
"""How long a name resolution is used, as long as API Gateway's own records last."""

SIGNATURE_SECONDS = 60
"""Signatures hold for five minutes; a minute leaves room for clocks that differ, and follows rotated
credentials."""


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


@dataclass(frozen=True)
class Pace:
    """How fast a batch may post: `credit` posts at once, and `rate` posts a second from then on."""

    rate: float
    credit: float


@dataclass
class Posted:
    """What became of a batch; `outcomes` holds every recipient once, in the order given."""

    outcomes: list[tuple[Recipient, Outcome]]
    retries: int = 0
    throttled: int = 0
    """Answers 429, whatever became of their recipients in the end."""

    def count(self, outcome: Outcome) -> int:
        """How many recipients ended so."""
        return sum(1 for _, other in self.outcomes if other == outcome)


class Gateway:
    """The connections endpoint of one API stage.

    Keep it: its HTTP connections outlive a call. Not thread-safe.
    """

    def __init__(self, endpoint: str, session: Any, concurrency: int) -> None:
        """Open nothing yet.

        `endpoint` is `https://host/stage`; `session` a botocore session, asked for credentials and region;
        `concurrency` the most posts in flight, and so the most HTTP connections opened.
        """
        self._endpoint = endpoint.rstrip("/")
        self._session = session
        self._concurrency = concurrency
        self._wires = _Wires(self._endpoint)

    def post(
        self, recipients: Sequence[Recipient], body: bytes, deadline: float, pace: Pace | None = None
    ) -> Posted:
        """Post `body` to every recipient; return when all are settled, or at the deadline.

        `deadline` is in seconds of `time.monotonic`. Transient answers (429, 5xx, timeouts, resets, and 410
        during the handshake) are repeated with full jitter, up to ATTEMPTS posts each (for 429 see CROWD). A
        recipient that waits holds no HTTP connection, and one that does not answer holds only its own, so
        none waits for another. What the deadline cuts off is reported as it stands. Repeated posts count
        against the pace like others.
        """
        return _Batch(self._wires, self._signer, self._concurrency, body, deadline, pace).post(recipients)

    def _signer(self, body: bytes) -> PostSigner:
        credentials = self._session.get_credentials().get_frozen_credentials()
        trace_id = os.environ.get("_X_AMZN_TRACE_ID")  # set anew for each invocation [Lambda, X-Ray]
        region = self._session.get_config_variable("region")
        return PostSigner(self._endpoint, region, credentials, body, trace_id=trace_id)


@dataclass(slots=True, eq=False)
class _Post:
    recipient: Recipient
    attempts: int = 0
    throttled: int = 0
    timeouts: int = 0
    replaced: bool = False
    throttled_since: float | None = None
    outcome: Outcome = "failed"


class _Batch:
    """One call of `Gateway.post`: a post is ready, in flight, resting before a retry, or settled."""

    def __init__(
        self,
        wires: "_Wires",
        signer: Callable[[bytes], PostSigner],
        concurrency: int,
        body: bytes,
        deadline: float,
        pace: Pace | None,
    ) -> None:
        self._wires = wires
        self._pace = pace or Pace(rate=math.inf, credit=math.inf)
        self._started = time.monotonic()
        self._sent = 0
        self._make_signer = signer
        self._concurrency = concurrency
        self._body = body
        self._deadline = deadline
        self._renew_signer(time.monotonic())
        self._ready: deque[_Post] = deque()
        self._flying: dict[Wire, tuple[float, _Post]] = {}  # oldest first, with its time-out
        self._resting: list[tuple[float, int, _Post]] = []
        self._size = self._unsettled = self._crowd = 0
        self._posted = Posted([])

    def post(self, recipients: Sequence[Recipient]) -> Posted:
        posts = [_Post(recipient) for recipient in recipients]
        self._ready.extend(posts)
        self._size = self._unsettled = len(posts)
        while self._unsettled and (now := time.monotonic()) < self._deadline:
            self._wake(now)
            self._launch(now)
            if not self._unsettled:
                break  # the last were settled without being sent: there is no answer to wait for
            for wire in self._wires.wait(self._next_moment() - time.monotonic()):
                self._advance(wire)
            self._expire(time.monotonic())
        for wire in self._flying:
            self._wires.drop(wire)
        self._posted.outcomes = [(post.recipient, post.outcome) for post in posts]
        return self._posted

    def _wake(self, now: float) -> None:
        while self._resting and self._resting[0][0] <= now:
            self._ready.append(heapq.heappop(self._resting)[2])
            self._posted.retries += 1

    def _renew_signer(self, now: float) -> None:
        self._signer = self._make_signer(self._body)
        self._signed_until = now + SIGNATURE_SECONDS

    def _launch(self, now: float) -> None:
        if now >= self._signed_until:
            self._renew_signer(now)
        while self._ready and len(self._flying) < self._concurrency and self._next_send() <= now:
            post = self._ready.popleft()
            self._sent += 1
            try:
                wire = self._wires.take(now, self._deadline)
            except BROKEN:
                self._settle(post, None)
                continue
            now = time.monotonic()  # the name may have taken a while to resolve
            self._flying[wire] = now + POST_TIMEOUT_SECONDS, post
            self._start(wire, post)

    def _next_send(self) -> float:
        """When the pace allows one more post."""
        return self._started + max(0.0, self._sent + 1 - self._pace.credit) / self._pace.rate

    def _start(self, wire: Wire, post: _Post) -> None:
        try:
            wire.start(self._signer.head(post.recipient.connection_id) + self._body)
            self._wires.watch(wire)
        except BROKEN:
            self._lose(wire)

    def _advance(self, wire: Wire) -> None:
        if wire not in self._flying:
            # An idle wire has something to say: it is closing.
            self._wires.drop(wire)
            return
        try:
            status = wire.advance()
        except BROKEN:
            self._lose(wire)
            return
        if status is None:
            self._wires.watch(wire)
            return
        _, post = self._flying.pop(wire)
        self._settle(post, status)
        self._wires.give_back(wire)

    def _lose(self, wire: Wire) -> None:
        """Replace a wire that broke. One that had idled may have died long ago, and its post did not fail.

        Those still idle may have died with it, so the post gets another. All that is believed once a post: it
        may be what kills the wires, and each of them may have taken it.
        """
        _, post = self._flying.pop(wire)
        self._wires.drop(wire)
        if wire.used and not wire.answering and not post.replaced:
            post.replaced = True
            self._wires.drop_idle()
            self._ready.appendleft(post)
        else:
            self._settle(post, None)

    def _expire(self, now: float) -> None:
        overdue = itertools.takewhile(lambda flight: flight[1][0] <= now, self._flying.items())
        for wire, (_, post) in list(overdue):
            del self._flying[wire]
            self._wires.drop(wire)
            post.timeouts += 1
            self._settle(post, None)

    def _settle(self, post: _Post, status: int | None) -> None:
        """Take note of an answer (None: there was none), and rest the post if it is worth repeating."""
        post.attempts += 1
        post.outcome = "delivered" if status == 200 else "gone" if status == 410 else "failed"
        now = time.monotonic()
        if status == 429:
            self._posted.throttled += 1
            post.throttled += 1
            self._sent += 1  # a refusal uses up one more post of the pace: a crowded quota slows it down
            if post.throttled_since is None:
                post.throttled_since = now
                self._crowd += 1
        if self._is_worth_repeating(post, status, now):
            doubled = FIRST_BACKOFF_SECONDS * 2 ** min(post.attempts - 1, 10)
            longest = min(LONGEST_BACKOFF_SECONDS, doubled)
            wake = now + random.uniform(0, longest)  # noqa: S311 - jitter needs no secrecy
            heapq.heappush(self._resting, (wake, id(post), post))
        else:
            self._unsettled -= 1

    def _is_worth_repeating(self, post: _Post, status: int | None, now: float) -> bool:
        spent = post.attempts
        if post.throttled_since and self._crowd >= max(CROWD, self._size / 10):
            if status == 429:
                return now - post.throttled_since < THROTTLED_SECONDS
            spent -= post.throttled
        transient = (
            post.recipient.in_handshake()
            if status == 410
            else status is None or status == 429 or status >= 500
        )
        return transient and spent < ATTEMPTS and post.timeouts < POST_TIMEOUTS

    def _next_moment(self) -> float:
        """When something is to be done even if no answer comes."""
        moments = [self._deadline]
        if self._ready and len(self._flying) < self._concurrency:
            moments.append(self._next_send())
        if self._resting:
            moments.append(self._resting[0][0])
        if self._flying:
            moments.append(next(iter(self._flying.values()))[0])
        return min(moments)


class _Wires:
    """The HTTP connections to one origin: opened as they are needed, and reused last in, first out."""

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        self._host = url.hostname or ""
        self._port = url.port or {"https": 443, "http": 80}[url.scheme]
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._tls_session: ssl.SSLSession | None = None
        self._selector = selectors.DefaultSelector()
        self._watched: dict[Wire, int] = {}
        self._idle: list[tuple[float, Wire]] = []
        self._resolver = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resolver")
        self._addresses: Iterator[Address] = iter(())
        self._addresses_until = 0.0
        self._unresolved_until = 0.0

    def take(self, now: float, deadline: float) -> Wire:
        """An idle wire, or a new one. Raises one of BROKEN when the host has no address."""
        while self._idle:
            idle_since, wire = self._idle.pop()
            if now - idle_since < IDLE_SECONDS:
                return wire
            self.drop(wire)
        if now < self._unresolved_until:
            raise OSError(f"{self._host} was not resolved a moment ago")
        if now >= self._addresses_until:
            self._unresolved_until = now + FIRST_BACKOFF_SECONDS
            # The resolver cannot be interrupted, and may take longer than there is time.
            found = self._resolver.submit(socket.getaddrinfo, self._host, self._port, type=socket.SOCK_STREAM)
            entries = found.result(timeout=max(0, min(POST_TIMEOUT_SECONDS, deadline - now)))
            self._addresses = itertools.cycle([(entry[0], entry[4]) for entry in entries])
            self._addresses_until, self._unresolved_until = now + ADDRESS_SECONDS, 0.0
        return Wire(next(self._addresses), self._host, self._tls, self._tls_session)

    def watch(self, wire: Wire) -> None:
        """Have `wait` report the wire when it is ready for what it wants."""
        watched = self._watched.get(wire)
        if watched is None:
            self._selector.register(wire, wire.wants, wire)
        elif watched != wire.wants:
            self._selector.modify(wire, wire.wants, wire)
        self._watched[wire] = wire.wants

    def wait(self, seconds: float) -> list[Wire]:
        """The wires that are ready, after at most so many seconds."""
        return [key.data for key, _ in self._selector.select(max(0, seconds))]

    def give_back(self, wire: Wire) -> None:
        """Keep a wire whose answer is complete for the next request, if its server agrees."""
        if not wire.reusable:
            self.drop(wire)
            return
        self._tls_session = self._tls_session or wire.tls_session()
        self._idle.append((time.monotonic(), wire))

    def drop_idle(self) -> None:
        """Close the wires that carry no request."""
        for _, wire in list(self._idle):
            self.drop(wire)

    def drop(self, wire: Wire) -> None:
        """Close a wire, idle or not."""
        if self._watched.pop(wire, None) is not None:
            self._selector.unregister(wire)
        self._idle = [entry for entry in self._idle if entry[1] is not wire]
        wire.close()
