"""The core of a client, without I/O: it decides what to yield, what to ask the server, and when.

It opens no socket, starts no task and reads no clock: every call that depends on the time takes `now`, in
seconds on any monotonic clock. `Inbox` belongs to a client, and `Session` to one of its connections:

    session = inbox.open(now)                   a WebSocket has opened
    request = session.request(now)              what to send now, or None until session.ask_at
    session.answered(reply, now)                the reply came; or `unanswered`, when none came in time
    inbox.post(message)                         a message arrived that answers no request
    inbox.release_at, inbox.advance(now)        when held messages are yielded at the latest
    inbox.take()                                the next message to yield, or None
    inbox.position                              where a later client resumes

`clients/conformance/` contains scripts that this core passes, and that the core of any other client must
pass.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from muster.client.errors import FINAL_CODES, Refused

Message = dict[str, Any]
"""A JSON object that is sent or received; `muster.types` and `schemas/` describe each."""

ENVELOPE_TYPES = frozenset({"alert", "broadcast", "shelter_update"})

HEARTBEAT_SECONDS = 300.0
"""Half of the idle time after which API Gateway closes a connection. [API Gateway WebSocket quotas]"""

SETTLE_SECONDS = 5.0
"""The time from the first round of a connection to the second. By then the index that broadcasts read
contains the connection, so the second round brings what was sent in between."""

REMEMBERED_IDS = 10_000
"""Message ids kept for dropping duplicates: far more than the server sends twice."""

HOLD_SECONDS = 5.0
"""How long new messages wait, after a reconnection, for the older ones that a resume brings."""

BACKOFF_BASE_SECONDS = 1.0
BACKOFF_CAP_SECONDS = 30.0
"""The pause before attempt n is random, up to BASE * 2**(n - 1) and at most CAP."""

ROLLOVER_WINDOW = (0.8, 1.0)
"""The part of a connection's life in which it is replaced. The moment is random, so that clients which
connected at the same time do not reconnect at the same time."""

SHORTEST_LIFE_SECONDS = 1.0
"""The least time before a working connection is replaced, whatever the server says."""


@dataclass
class _Waiting:
    """A message to yield, and the position that is reached once it is taken."""

    message: Message
    position: str | None


class Inbox:
    """What a client has received, what of it to yield, and from where to resume.

    Only a resume moves the position. A message that arrives by itself says nothing about those before it,
    whose posts may have failed.
    """

    def __init__(
        self, position: str | None = None, *, heartbeat: float = HEARTBEAT_SECONDS, renewable: bool = False
    ) -> None:
        """`position` is that of an earlier client.

        `heartbeat` is the number of seconds between two rounds of ping and resume. `renewable` says that a
        new connection gets a fresh token, so a connection is replaced before its token expires.
        """
        self.position = position
        """The last id that a resume brought, as far as messages were taken; None before the first pong."""
        self.resume_from = position
        """The last id that a resume has brought. None before the first pong."""
        self.duplicates = 0
        """Messages that were posted again and dropped; what a resume repeats does not count."""
        self.release_at: float | None = None
        """When held messages are released at the latest; None while none are held."""
        self.serving: Session | None = None
        """The latest connection that has got a pong. One that it replaced is closed now."""
        self.heartbeat = heartbeat
        self.renewable = renewable
        # Messages sent before this time are not wanted.
        self._since = ""
        # The role, the shelter and the start of the connection, as the last pong said.
        self._audiences: tuple[str | None, str | None] | None = None
        self._connected_at = ""
        # Message ids, oldest first, and whether each was posted yet: a resume may be faster than the post.
        self._seen: dict[str, bool] = {}
        # The highest id among the messages to yield.
        self._newest = ""
        self._held: list[Message] = []
        self._queue: deque[_Waiting] = deque()

    def open(self, now: float) -> Session:
        """Begin a session for a WebSocket that has opened.

        If there is something to resume, new messages are held for up to HOLD_SECONDS, so that the older ones
        come first.
        """
        if self.resume_from is not None:
            self.hold(now)
        return Session(self, now)

    def begin(self, connected_at: str, audiences: tuple[str | None, str | None]) -> None:
        """Take the start of the connection, and its role and shelter, from a pong.

        Without a position, everything sent from `connected_at` on is wanted. When the role or shelter differs
        from the pong before, it may have changed at any time since the connection of that pong began, so
        everything is resumed from there.
        """
        if self.resume_from is None:
            self._move(_lowest_id(datetime.fromisoformat(connected_at)))
            self._since = connected_at
        elif self._audiences not in (None, audiences):
            self._move_back(_lowest_id(datetime.fromisoformat(self._connected_at)))
        self._audiences, self._connected_at = audiences, connected_at

    def hold(self, now: float) -> None:
        """Hold new messages until `release`, or for HOLD_SECONDS."""
        if self.release_at is None:
            self.release_at = now + HOLD_SECONDS

    def advance(self, now: float) -> None:
        """Release held messages if HOLD_SECONDS have passed."""
        if self.release_at is not None and now >= self.release_at:
            self.release()

    def release(self) -> None:
        """Yield what was held, and from now on each message when it arrives."""
        self.release_at = None
        held, self._held = self._held, []
        for message in held:
            self._add(message, posted=True)

    def post(self, message: Message) -> None:
        """Take a message that arrived by itself."""
        if self._seen.get(message["id"]):
            self.duplicates += 1
        elif self.release_at is None:
            self._add(message, posted=True)
        else:
            self._held.append(message)

    def bring(self, messages: Iterable[Message]) -> int:
        """Take messages of a resume, oldest first; return how many of them had not arrived before."""
        new = 0
        held = {message["id"] for message in self._held}  # they arrived by themselves, and were not missed
        for message in messages:
            # The server re-reads a little before the position, and so perhaps before the first connection.
            if message["sentAt"] >= self._since:
                late = message["id"] < self._newest
                if self._add(message | {"late": True} if late else message, posted=False):
                    new += message["id"] not in held
            self._move(message["id"])
        return new

    def take(self) -> Message | None:
        """Return the next message to yield, or None."""
        if not self._queue:
            return None
        waiting = self._queue.popleft()
        self.position = waiting.position
        return waiting.message

    def _add(self, message: Message, *, posted: bool) -> bool:
        """Queue a message unless its id was seen; return whether it is new."""
        identifier = message["id"]
        if identifier in self._seen:
            self._seen[identifier] = self._seen[identifier] or posted
            return False
        self._seen[identifier] = posted
        if len(self._seen) > REMEMBERED_IDS:
            del self._seen[next(iter(self._seen))]
        self._newest = max(self._newest, identifier)
        self._queue.append(_Waiting(message, self.resume_from))
        return True

    def _move(self, identifier: str) -> None:
        """Resume from here. The position follows once everything before it was taken."""
        self.resume_from = max(self.resume_from or "", identifier)
        if self._queue:
            self._queue[-1].position = self.resume_from
        else:
            self.position = self.resume_from

    def _move_back(self, identifier: str) -> None:
        """Resume from here or earlier, also in a later client that has only the position."""
        self.resume_from = min(self.resume_from or identifier, identifier)
        self.position = min(self.position or identifier, identifier)
        for waiting in self._queue:
            waiting.position = min(waiting.position or identifier, identifier)


class Session:
    """One connection: it pings and resumes in rounds, and says when it must be replaced.

    A round is a ping and, unless this is the client's first round, a resume of as many pages as the server
    has. The second round follows SETTLE_SECONDS after the first, and each further one a heartbeat later. A
    round that fails is repeated on the same connection after a growing random pause, because messages may
    still arrive by it.
    """

    def __init__(self, inbox: Inbox, now: float) -> None:
        self._inbox = inbox
        self._opened_at = now
        self._spread = random.uniform(*ROLLOVER_WINDOW)  # noqa: S311 - jitter needs no secrecy
        self.ask_at = now
        """When the next request is due."""
        self.replace_at = float("inf")
        """When another connection has to replace this one."""
        self.lost = False
        """Whether the server no longer knows the connection, or does not answer pings: open another."""
        self.resumed = 0
        """New messages that the latest complete round brought."""
        # The round under way: whether a reply is awaited, whether the pong has come, the cursor of the next
        # page, and how many new messages its pages brought.
        self._waiting = False
        self._pinged = False
        self._cursor: str | None = None
        self._brought = 0
        # Whether the round resumes after its ping, and whether the application has renewed meanwhile.
        self._resumes = inbox.resume_from is not None
        self._renewed = False
        # Whether a full heartbeat follows the next good round, and how many rounds in a row have failed.
        self._settled = False
        self._failures = 0

    @property
    def idle(self) -> bool:
        """Whether no round is under way."""
        return not (self._waiting or self._pinged)

    def must_be_replaced(self, now: float) -> bool:
        """Whether to open another connection now. A round that is under way ends first."""
        return self.idle and now >= self.replace_at

    def request(self, now: float) -> Message | None:
        """Return the request to send now, without an id; None while none is due or a reply is awaited."""
        if self.lost or self._waiting or now < self.ask_at:
            return None
        self._waiting = True
        if not self._pinged:
            return {"action": "ping"}
        if self._cursor is not None:
            return {"action": "resume", "cursor": self._cursor}
        return {"action": "resume", "after": self._inbox.resume_from}

    def answered(self, reply: Mapping[str, Any], now: float) -> None:
        """Take the reply to the latest request.

        Raises `Refused` for an error that the same request would get again. A reply that does not follow the
        schema raises KeyError, TypeError, ValueError or AttributeError.
        """
        if reply.get("type") == "error":
            refusal = Refused(reply)
            if refusal.code in FINAL_CODES:
                raise refusal
            if refusal.transient:
                self._fail(now)
            else:
                self.lost = True
        elif not self._pinged:
            self._waiting = False
            self._greet(reply)
            self._pinged = True
            if not self._resumes:
                self._finish(now)
        else:
            self._waiting = False
            self._brought += self._inbox.bring(reply["messages"])
            if reply["more"]:
                self._cursor = reply["cursor"]
            else:
                self._finish(now)

    def unanswered(self, now: float) -> None:
        """No reply came in time. Without a pong the connection is lost; a resume is asked for again."""
        if self._pinged:
            self._fail(now)
        else:
            self.lost = True

    def renewed(self, now: float) -> None:
        """Start a round at once: a renewal may have changed the connection's role or shelter."""
        self._settled = False
        if self.idle:
            self.ask_at = now
        else:
            self._renewed = True

    def _greet(self, pong: Mapping[str, Any]) -> None:
        connected_at = datetime.fromisoformat(pong["connectedAt"])
        # Only a fresh token can give the next connection a later end than this one's.
        ends = ("reconnectBy", "expiresAt") if self._inbox.renewable else ("reconnectBy",)
        life = min(datetime.fromisoformat(pong[end]) for end in ends) - connected_at
        self._inbox.begin(pong["connectedAt"], (pong.get("role"), pong.get("shelterId")))
        self.replace_at = self._opened_at + max(SHORTEST_LIFE_SECONDS, self._spread * life.total_seconds())
        self._inbox.serving = self

    def _finish(self, now: float) -> None:
        self.resumed = self._brought
        self._failures = 0
        pause = self._inbox.heartbeat if self._settled else min(SETTLE_SECONDS, self._inbox.heartbeat)
        self._settled = True
        self._end_round(now, pause)

    def _fail(self, now: float) -> None:
        self.resumed = 0
        self._failures += 1
        self._end_round(now, min(self._inbox.heartbeat, backoff(self._failures)))

    def _end_round(self, now: float, pause: float) -> None:
        self.ask_at = now + pause
        if self._renewed:
            self.ask_at = now
            self._settled = self._renewed = False
        self._waiting = self._pinged = False
        self._cursor = None
        self._brought = 0
        self._resumes = True
        self._inbox.release()


def backoff(failures: int) -> float:
    """Return a random pause in seconds, whose bound grows with the failures in a row (full jitter)."""
    # Beyond 2**10 the bound is CAP in any case, and 2**1024 is no float any more.
    longest = min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2 ** min(failures - 1, 10))
    return random.uniform(0, longest)  # noqa: S311 - jitter needs no secrecy


def _lowest_id(instant: datetime) -> str:
    """Return the lowest UUIDv7 of an instant [RFC 9562]: where to resume before a resume brought an id."""
    return str(UUID(int=int(instant.timestamp() * 1000) << 80 | 0x7 << 76 | 0x2 << 62))
