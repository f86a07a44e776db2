"""Posting to WebSocket connections through API Gateway's `@connections` callbacks.

`Gateway.post` carries one body to many connections at once over kept-alive HTTP connections, from one thread
and without an event loop: see docs/delivery.md for what that is worth. Each recipient ends in exactly one
outcome, whatever happens to the others:

    delivered   API Gateway took the message for the connection (200)
    gone        the connection is closed: past its handshake, it answered 410 twice
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from functions.shared.instants import HANDSHAKE_SECONDS, epoch
from functions.shared.posting.signing import PostSigner
from functions.shared.posting.wire import BROKEN, Address, Wire

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

GONE_AGAIN_SECONDS = 1.0
"""API Gateway answers 410 for a live connection now and then [Hotsock, 2025-04], so a connection is asked
again after this time before it counts as gone. A single 410 proves nothing: if the time or the attempts end
before the second, the connection counts as failed, which deletes no row."""

POST_TIMEOUT_SECONDS = 3.0
POST_TIMEOUTS = 2
"""A post takes milliseconds; one that takes this long is repeated on a new HTTP connection, once: the batch,
and with it the partition's next page, waits for the last of its posts."""

SLOW_SECONDS = 1.0
SLOW_TIMEOUT_SECONDS = 10.0
"""A post is slow when it has no answer after SLOW_SECONDS. When at least CROWD are slow, and more than were
answered in time since the oldest of them was first sent, the endpoint is slow for everybody. To repeat their
posts would add to its load, and most have arrived. So the batch's time-out grows: two of them still fit into
the time of an invocation."""

REVIEW_SECONDS = 0.1
"""How often the posts that wait for a slow answer are looked at."""

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
        """Whether the connection may still be opening, by this server's clock; see HANDSHAKE_SECONDS."""
        return time.time() - self.connected_at < HANDSHAKE_SECONDS

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> "Recipient":
        """From a `connections` entry of a delivery batch.

        Raises ValueError, which names the field, when the row does not hold what `$connect` stores.
        """
        user_id = row.get("userId")
        if not isinstance(user_id, str) or not user_id:
            raise ValueError("userId is not a text")
        try:
            connected_at = epoch(row["connectedAt"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError("connectedAt is not a time") from None
        return cls(row["connectionId"], user_id, connected_at)


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
        during the handshake) are repeated with full jitter, up to ATTEMPTS posts each (for 429 see CROWD), a
        first 410 after GONE_AGAIN_SECONDS. A recipient that waits holds no HTTP connection, and one that does
        not answer holds only its own, so none waits for another. What the deadline cuts off is reported as
        failed. Repeated posts count against the pace like others.
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
    gone_once: bool = False
    needs_new_wire: bool = False
    replaced: bool = False
    throttled_since: float | None = None
    sent: float = 0.0  # the last time
    balance: int = 0  # of the batch, when it was sent for the first time
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
        self._flying: dict[Wire, _Post] = {}  # oldest first
        self._resting: list[tuple[float, int, _Post]] = []
        self._timeout = POST_TIMEOUT_SECONDS
        self._balance = 0  # answers in time, less slow ones
        self._reviewed = 0.0
        self._answered = self._probed = self._trusts_kept = False
        self._size = self._unsettled = self._crowd = 0
        self._posted = Posted([])

    def post(self, recipients: Sequence[Recipient]) -> Posted:
        posts = [_Post(recipient) for recipient in recipients]
        self._ready.extend(posts)
        self._size = self._unsettled = len(posts)
        self._wires.begin()
        while self._unsettled and (now := time.monotonic()) < self._deadline:
            self._wake(now)
            self._launch(now)
            if not self._unsettled:
                break  # the last were settled without being sent: there is no answer to wait for
            for wire in self._wires.wait(self._next_moment() - time.monotonic()):
                self._advance(wire)
            self._review(time.monotonic())
        for wire, post in self._flying.items():
            self._wires.drop(wire)
            if wire.status is not None:
                self._settle(post, wire.status)
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
            post = self._ready[0]
            try:
                wire = self._wires.take(now, self._deadline, post.needs_new_wire)
            except BROKEN:
                self._sent += 1
                self._settle(self._ready.popleft(), None)
                continue
            if wire is None:
                return
            self._sent += 1
            post.sent = now = time.monotonic()  # the name may have taken a while to resolve
            if not post.attempts:
                post.balance = self._balance
            self._flying[wire] = self._ready.popleft()
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
        post = self._flying.pop(wire)
        now = self._settle(post, status)
        self._balance += 1 if now - post.sent < SLOW_SECONDS else -1
        self._answered = True
        if wire.kept:
            self._trusts_kept = True
        self._wires.give_back(wire)

    def _lose(self, wire: Wire) -> None:
        """Note a wire that broke. One that had idled may have died long ago, and its post did not fail.

        That is believed once a post: it may be what kills the wires, and each of them may have taken it.
        """
        post = self._flying[wire]
        if wire.used and not wire.answering and not post.replaced:
            self._replace(wire)
        else:
            del self._flying[wire]
            self._wires.drop(wire)
            self._settle(post, None)

    def _replace(self, wire: Wire) -> None:
        """Have a new wire carry what a dead one did not. Those still idle may have died with it."""
        post = self._flying.pop(wire)
        post.replaced = post.needs_new_wire = True
        self._wires.drop(wire)
        self._wires.drop_idle()
        self._ready.appendleft(post)

    def _next_review(self) -> float:
        oldest = next(iter(self._flying.values()))
        return max(oldest.sent + SLOW_SECONDS, self._reviewed + REVIEW_SECONDS)

    def _review(self, now: float) -> None:
        """Look at the slow posts.

        Wires that were kept from an earlier batch may all have died without a word, in a Lambda freeze for
        example. As long as none of them has answered, one of their posts is repeated on a new wire. If that
        is answered, the kept wires are dead, and the others follow. If it is not, the endpoint is slow.
        """
        if not self._flying or now < self._next_review():
            return
        self._reviewed = now
        slow = list(
            itertools.takewhile(lambda entry: entry[1].sent + SLOW_SECONDS <= now, self._flying.items())
        )
        unanswered = sum(wire.is_open for wire, _ in slow)
        oldest = slow[0][1]
        if (
            now - oldest.sent >= POST_TIMEOUT_SECONDS
            and unanswered >= CROWD
            and unanswered > self._balance - oldest.balance
        ):
            self._timeout = SLOW_TIMEOUT_SECONDS
        for wire, post in slow:
            if wire.kept and not self._trusts_kept and (self._answered or not self._probed):
                self._probed = True
                self._replace(wire)
            elif now - post.sent >= self._limit(wire, post):
                del self._flying[wire]
                self._wires.drop(wire)
                post.timeouts += wire.status is None
                self._settle(post, wire.status)

    def _limit(self, wire: Wire, post: _Post) -> float:
        """How long a post may wait for its answer.

        A batch of fewer than CROWD cannot tell a slow endpoint from a dead connection: its second post waits
        longer.
        """
        if not wire.is_open:
            return POST_TIMEOUT_SECONDS
        return SLOW_TIMEOUT_SECONDS if post.timeouts and self._size < CROWD else self._timeout

    def _settle(self, post: _Post, status: int | None) -> float:
        """Take note of an answer (None: there was none), and rest the post if it is worth repeating.

        Return the time that it is.
        """
        now = time.monotonic()
        post.attempts += 1
        post.needs_new_wire = status is None
        post.outcome = "delivered" if status == 200 else "failed"
        if status == 200:
            self._unsettled -= 1
            return now
        if status == 429:
            self._posted.throttled += 1
            post.throttled += 1
            self._sent += 1  # a refusal uses up one more post of the pace: a crowded quota slows it down
            if post.throttled_since is None:
                post.throttled_since = now
                self._crowd += 1
        if status == 410 and not post.recipient.in_handshake():
            if post.gone_once:
                post.outcome = "gone"
            post.gone_once = True
        if self._is_worth_repeating(post, status, now):
            doubled = FIRST_BACKOFF_SECONDS * 2 ** min(post.attempts - 1, 10)
            longest = min(LONGEST_BACKOFF_SECONDS, doubled)
            pause = random.uniform(0, longest)  # noqa: S311 - jitter needs no secrecy
            wake = now + (GONE_AGAIN_SECONDS if status == 410 and post.gone_once else pause)
            if wake < self._deadline:
                heapq.heappush(self._resting, (wake, id(post), post))
                return now
        self._unsettled -= 1
        return now

    def _is_worth_repeating(self, post: _Post, status: int | None, now: float) -> bool:
        spent = post.attempts
        if post.throttled_since and self._crowd >= max(CROWD, self._size / 10):
            if status == 429:
                return now - post.throttled_since < THROTTLED_SECONDS
            spent -= post.throttled
        transient = status is None or status in (410, 429) or status >= 500
        return transient and post.outcome != "gone" and spent < ATTEMPTS and post.timeouts < POST_TIMEOUTS

    def _next_moment(self) -> float:
        """When something is to be done even if no answer comes."""
        moments = [self._deadline]
        if self._ready and len(self._flying) < self._concurrency:
            moments.append(self._next_send())
        if self._resting:
            moments.append(self._resting[0][0])
        if self._flying:
            moments.append(self._next_review())
        return min(moments)


class _Wires:
    """The HTTP connections to one origin: opened as they are needed, and reused last in, first out.

    A wire that is given back is free after the next `wait`, if that has nothing to report of it: bytes that
    follow an answer must not pass for the answer to the next request.
    """

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        self._host = url.hostname or ""
        self._port = url.port or {"https": 443, "http": 80}[url.scheme]
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._tls_session: ssl.SSLSession | None = None
        self._selector = selectors.DefaultSelector()
        self._watched: dict[Wire, int] = {}
        self._idle: list[tuple[float, Wire]] = []
        self._given_back: list[tuple[float, Wire]] = []
        self._resolver = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resolver")
        self._addresses: Iterator[Address] | None = None
        self._addresses_until = 0.0
        self._unresolved_until = 0.0
        self._resolving: Future[Any] | None = None

    def begin(self) -> None:
        """Have the wires that an earlier batch left looked at before they are used."""
        self._given_back, self._idle = self._idle + self._given_back, []
        for _, wire in self._given_back:
            wire.kept = True

    def take(self, now: float, deadline: float, new: bool) -> Wire | None:
        """An idle wire, or a new one; None if one will be free after the next `wait`.

        With `new`, a new one, which takes the place of one that is free. Raises one of BROKEN when the host
        has no address.
        """
        if new:
            for _, spare in (self._idle or self._given_back)[:1]:
                self.drop(spare)
        else:
            while self._idle:
                idle_since, wire = self._idle.pop()
                if now - idle_since < IDLE_SECONDS:
                    return wire
                self.drop(wire)
            if self._given_back:
                return None
        if now >= self._addresses_until and now >= self._unresolved_until:
            self._resolve(now, deadline)
        if self._addresses is None:
            raise OSError(f"{self._host} was not resolved a moment ago")
        return Wire(next(self._addresses), self._host, self._tls, self._tls_session)

    def _resolve(self, now: float, deadline: float) -> None:
        """Look the host up, and keep the addresses that are known while nothing newer comes.

        The resolver cannot be interrupted, and may take longer than there is time: a later call takes its
        result. Only the first look-up is waited for. Raises one of BROKEN when there never was an address.
        """
        self._unresolved_until = now + FIRST_BACKOFF_SECONDS
        if self._resolving is None:
            self._resolving = self._resolver.submit(
                socket.getaddrinfo, self._host, self._port, type=socket.SOCK_STREAM
            )
        patience = 0 if self._addresses else max(0, min(POST_TIMEOUT_SECONDS, deadline - now))
        try:
            entries = self._resolving.result(timeout=patience)
        except TimeoutError:
            if self._addresses is None:
                raise
            return
        except OSError:
            self._resolving = None
            if self._addresses is None:
                raise
            return
        self._resolving = None
        self._addresses = itertools.cycle([(entry[0], entry[4]) for entry in entries])
        self._addresses_until, self._unresolved_until = now + ADDRESS_SECONDS, 0.0

    def watch(self, wire: Wire) -> None:
        """Have `wait` report the wire when it is ready for what it wants."""
        watched = self._watched.get(wire)
        if watched is None:
            self._selector.register(wire, wire.wants, wire)
        elif watched != wire.wants:
            self._selector.modify(wire, wire.wants, wire)
        self._watched[wire] = wire.wants

    def wait(self, seconds: float) -> list[Wire]:
        """The wires that are ready, after at most so many seconds. One that is idle has no more to say."""
        ready = [key.data for key, _ in self._selector.select(max(0, seconds))]
        self._idle += self._given_back
        self._given_back = []
        return ready

    def give_back(self, wire: Wire) -> None:
        """Keep a wire whose answer is complete for the next request, if its server agrees."""
        if not wire.reusable:
            self.drop(wire)
            return
        self._tls_session = self._tls_session or wire.tls_session()
        wire.kept = False
        self._given_back.append((time.monotonic(), wire))

    def drop_idle(self) -> None:
        """Close the wires that carry no request."""
        for _, wire in self._idle + self._given_back:
            self.drop(wire)

    def drop(self, wire: Wire) -> None:
        """Close a wire, idle or not."""
        if self._watched.pop(wire, None) is not None:
            self._selector.unregister(wire)
        for free in self._idle, self._given_back:
            free[:] = [entry for entry in free if entry[1] is not wire]
        wire.close()
