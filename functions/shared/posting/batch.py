"""The loop of one `Gateway.post` call: send the posts, read their answers, retry, give each an outcome.

A post is in one of four states: ready to be sent, in flight on a wire, in backoff before a retry, or settled
(its outcome is final).
"""

import heapq
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from functions.shared.posting.pool import Pool
from functions.shared.posting.recipients import Outcome, Pace, Posted, Recipient
from functions.shared.posting.signing import PostSigner
from functions.shared.posting.wire import BROKEN, Wire

ATTEMPTS = 5
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 2.0

WIDESPREAD = 4
"""A fault that hits fewer recipients than this is theirs. One that hits at least this many may be the
endpoint's or the account's."""

THROTTLED_SECONDS = 10.0
"""A 429 means that one client's buffer is full, or that the account's quota is used up. It is the quota when
at least WIDESPREAD recipients of a batch, and a tenth of them, get one. Then 429 is retried for this long and
uses up no attempt, while another broadcast's burst passes. A single client's buffer gets ATTEMPTS posts like
any other fault, because the next page of the partition waits for it."""

GONE_AGAIN_SECONDS = 1.0
"""API Gateway sometimes answers 410 for a live connection [Hotsock, 2025-04], so a connection counts as gone
only after a second 410, this much later. If the time or the attempts end before that, the connection counts
as failed, which keeps its row."""

POST_TIMEOUT_SECONDS = 3.0
POST_TIMEOUTS = 2
"""A post takes milliseconds. One that takes POST_TIMEOUT_SECONDS is retried once, on a new wire. There is no
third post, because the batch, and so the partition's next page, waits for it."""

SLOW_SECONDS = 1.0
SLOW_TIMEOUT_SECONDS = 10.0
"""A post is slow when it has no answer after SLOW_SECONDS. The endpoint is slow when at least WIDESPREAD
posts are, and more than were answered in time since the oldest of them was sent. Retries would then add to
its load, and most of the posts have arrived. So the batch's timeout grows to SLOW_TIMEOUT_SECONDS, two of
which fit into an invocation."""

REVIEW_SECONDS = 0.1
"""The interval between two checks of the slow posts."""


@dataclass(slots=True, eq=False)
class _Post:
    recipient: Recipient
    attempts: int = 0
    throttled: int = 0
    timeouts: int = 0
    gone_once: bool = False
    needs_new_wire: bool = False
    replaced: bool = False
    """Whether it was sent again on a new wire without counting an attempt."""
    throttled_since: float | None = None
    sent: float = 0.0
    """The time of the last attempt."""
    fast_minus_slow: int = 0
    """The batch's `_fast_minus_slow` at the first attempt."""
    outcome: Outcome = "failed"


class Batch:
    """The state of one call."""

    def __init__(
        self,
        pool: Pool,
        signer: PostSigner,
        body: bytes,
        *,
        concurrency: int,
        deadline: float,
        pace: Pace | None,
    ) -> None:
        """See `Gateway.post`. `signer` signs posts of this `body`."""
        self._pool = pool
        self._signer = signer
        self._body = body
        self._concurrency = concurrency
        self._deadline = deadline
        self._pace = pace or Pace(rate=math.inf, credit=math.inf)
        self._started = time.monotonic()
        self._sent = 0
        self._ready: deque[_Post] = deque()
        self._in_flight: dict[Wire, _Post] = {}  # oldest first
        self._in_backoff: list[tuple[float, int, _Post]] = []  # a heap, by the time of the retry
        self._timeout = POST_TIMEOUT_SECONDS
        self._fast_minus_slow = 0  # answers within SLOW_SECONDS, minus later ones
        self._last_review = 0.0
        self._answered = False
        self._kept_wire_answered = False
        self._kept_wire_tested = False
        self._size = self._unsettled = 0
        self._throttled_recipients = 0
        self._posted = Posted([])

    def post(self, recipients: Sequence[Recipient]) -> Posted:
        """Run the batch. Call it once."""
        posts = [_Post(recipient) for recipient in recipients]
        self._ready.extend(posts)
        self._size = self._unsettled = len(posts)
        self._pool.start_batch()
        while self._unsettled and (now := time.monotonic()) < self._deadline:
            self._end_backoffs(now)
            self._send_ready(now)
            if not self._unsettled:
                break  # the last posts failed before they were sent, so there is no answer to wait for
            for wire in self._pool.wait(self._next_event() - time.monotonic()):
                self._advance(wire)
            self._review_slow(time.monotonic())
        for wire, post in self._in_flight.items():
            self._pool.drop(wire)
            if wire.status is not None:
                self._settle_or_retry(post, wire.status)
        self._posted.outcomes = [(post.recipient, post.outcome) for post in posts]
        return self._posted

    def _end_backoffs(self, now: float) -> None:
        while self._in_backoff and self._in_backoff[0][0] <= now:
            _, _, post = heapq.heappop(self._in_backoff)
            self._ready.append(post)
            self._posted.retries += 1

    def _send_ready(self, now: float) -> None:
        while self._ready and len(self._in_flight) < self._concurrency and self._next_send() <= now:
            post = self._ready[0]
            try:
                wire = self._pool.take(now, self._deadline, post.needs_new_wire)
            except BROKEN:
                self._sent += 1
                self._settle_or_retry(self._ready.popleft(), None)
                continue
            if wire is None:
                return
            self._sent += 1
            post.sent = now = time.monotonic()  # the name look-up may have taken a while
            if not post.attempts:
                post.fast_minus_slow = self._fast_minus_slow
            self._in_flight[wire] = self._ready.popleft()
            self._start(wire, post)

    def _next_send(self) -> float:
        """When the pace allows one more post."""
        return self._started + max(0.0, self._sent + 1 - self._pace.credit) / self._pace.rate

    def _start(self, wire: Wire, post: _Post) -> None:
        try:
            wire.start(self._signer.head(post.recipient.connection_id) + self._body)
            self._pool.watch(wire)
        except BROKEN:
            self._replace_or_fail(wire)

    def _advance(self, wire: Wire) -> None:
        if wire not in self._in_flight:
            # The server closes an idle wire, or sends bytes that no request asked for.
            self._pool.drop(wire)
            return
        try:
            status = wire.advance()
        except BROKEN:
            self._replace_or_fail(wire)
            return
        if status is None:
            self._pool.watch(wire)
            return
        post = self._in_flight.pop(wire)
        now = self._settle_or_retry(post, status)
        self._fast_minus_slow += 1 if now - post.sent < SLOW_SECONDS else -1
        self._answered = True
        if wire.kept:
            self._kept_wire_answered = True
        self._pool.release(wire)

    def _replace_or_fail(self, wire: Wire) -> None:
        """Handle a broken wire.

        A used wire may have died while idle, so its post is requeued without counting an attempt. That
        happens once per post: the post itself may be what breaks wires, and each time it may have arrived.
        """
        post = self._in_flight[wire]
        if wire.used and not wire.answering and not post.replaced:
            self._replace(wire)
        else:
            del self._in_flight[wire]
            self._pool.drop(wire)
            self._settle_or_retry(post, None)

    def _replace(self, wire: Wire) -> None:
        """Requeue the post of a dead wire for a new one. Close the idle wires, which may be dead too."""
        post = self._in_flight.pop(wire)
        post.replaced = post.needs_new_wire = True
        self._pool.drop(wire)
        self._pool.drop_idle()
        self._ready.appendleft(post)

    def _next_review(self) -> float:
        oldest = next(iter(self._in_flight.values()))
        return max(oldest.sent + SLOW_SECONDS, self._last_review + REVIEW_SECONDS)

    def _review_slow(self, now: float) -> None:
        """Time out slow posts, and find out whether the kept wires or the endpoint are the cause.

        All wires kept from an earlier batch may have died unnoticed, for example while Lambda had the
        environment frozen. While none of them has answered, one of their posts is repeated on a new wire as
        a test. If a new wire answers, the kept wires are dead and their other posts are repeated too. If
        none does, the endpoint is slow.
        """
        if not self._in_flight or now < self._next_review():
            return
        self._last_review = now
        slow = list(
            itertools.takewhile(lambda entry: entry[1].sent + SLOW_SECONDS <= now, self._in_flight.items())
        )
        unanswered = sum(wire.is_open for wire, _ in slow)
        _, oldest = slow[0]
        if (
            now - oldest.sent >= POST_TIMEOUT_SECONDS
            and unanswered >= WIDESPREAD
            and unanswered > self._fast_minus_slow - oldest.fast_minus_slow
        ):
            self._timeout = SLOW_TIMEOUT_SECONDS
        for wire, post in slow:
            if wire.kept and not self._kept_wire_answered and (self._answered or not self._kept_wire_tested):
                self._kept_wire_tested = True
                self._replace(wire)
            elif now - post.sent >= self._timeout_of(wire, post):
                del self._in_flight[wire]
                self._pool.drop(wire)
                post.timeouts += wire.status is None
                self._settle_or_retry(post, wire.status)

    def _timeout_of(self, wire: Wire, post: _Post) -> float:
        """How long a post may wait for its answer.

        A batch smaller than WIDESPREAD cannot tell a slow endpoint from a dead connection, so its second
        posts get the long timeout.
        """
        if not wire.is_open:
            return POST_TIMEOUT_SECONDS
        return SLOW_TIMEOUT_SECONDS if post.timeouts and self._size < WIDESPREAD else self._timeout

    def _settle_or_retry(self, post: _Post, status: int | None) -> float:
        """Record an answer (None: there was none). Schedule a retry if one is due, else settle the post.

        Return the current time.
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
            self._sent += 1  # a 429 takes a second post from the pace: a used-up quota halves it
            if post.throttled_since is None:
                post.throttled_since = now
                self._throttled_recipients += 1
        if status == 410 and not post.recipient.in_handshake():
            if post.gone_once:
                post.outcome = "gone"
            post.gone_once = True
        if self._may_retry(post, status, now):
            doubled = FIRST_BACKOFF_SECONDS * 2 ** min(post.attempts - 1, 10)
            longest = min(LONGEST_BACKOFF_SECONDS, doubled)
            pause = random.uniform(0, longest)  # noqa: S311 - jitter needs no secrecy
            retry_at = now + (GONE_AGAIN_SECONDS if status == 410 and post.gone_once else pause)
            if retry_at < self._deadline:
                heapq.heappush(self._in_backoff, (retry_at, id(post), post))
                return now
        self._unsettled -= 1
        return now

    def _may_retry(self, post: _Post, status: int | None, now: float) -> bool:
        attempts = post.attempts
        if post.throttled_since is not None and self._quota_used_up():
            if status == 429:
                return now - post.throttled_since < THROTTLED_SECONDS
            attempts -= post.throttled
        transient = status is None or status in (410, 429) or status >= 500
        return transient and post.outcome != "gone" and attempts < ATTEMPTS and post.timeouts < POST_TIMEOUTS

    def _quota_used_up(self) -> bool:
        return self._throttled_recipients >= max(WIDESPREAD, self._size / 10)

    def _next_event(self) -> float:
        """When the loop has something to do even if no answer arrives."""
        moments = [self._deadline]
        if self._ready and len(self._in_flight) < self._concurrency:
            moments.append(self._next_send())
        if self._in_backoff:
            moments.append(self._in_backoff[0][0])
        if self._in_flight:
            moments.append(self._next_review())
        return min(moments)
