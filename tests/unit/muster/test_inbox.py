"""The core of the client, without sockets or clock: what it yields and where it resumes."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.client import Inbox, Message, Session

CONNECTED = datetime(2026, 11, 24, 6, tzinfo=UTC)
RESIDENT = ("resident", "north")


def iso(instant: datetime) -> str:
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def message(number: int) -> Message:
    """A message sent `number` seconds after the connection was made."""
    sent_at = CONNECTED + timedelta(seconds=number)
    milliseconds = int(sent_at.timestamp() * 1000)
    digits = f"{milliseconds:012x}70008{0:015x}"
    identifier = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return {"type": "alert", "id": identifier, "sentAt": iso(sent_at), "number": number}


def opened() -> Inbox:
    inbox = Inbox(None)
    inbox.begin(iso(CONNECTED), RESIDENT)
    return inbox


def taken(inbox: Inbox) -> list[int]:
    return [message["number"] for message in iter(inbox.take, None)]


def test_the_position_is_the_time_of_the_connection_until_a_resume_brings_something() -> None:
    assert Inbox(None).position is None
    inbox = opened()
    first = inbox.position
    assert first is not None
    assert message(-1)["id"] < first <= message(0)["id"]
    inbox.post(message(1))
    assert taken(inbox) == [1]
    assert inbox.position == first
    inbox.bring([message(1)])
    assert inbox.position == message(1)["id"]


def test_the_position_follows_what_is_taken_and_not_what_has_arrived() -> None:
    inbox = opened()
    inbox.post(message(3))
    inbox.bring([message(1), message(2), message(3)])
    start = inbox.position
    assert inbox.resume_from == message(3)["id"]
    positions = []
    while inbox.take():
        positions.append(inbox.position)
    assert positions == [start, message(1)["id"], message(3)["id"]]


def test_a_later_client_resumes_from_the_position_and_takes_everything_since() -> None:
    inbox = Inbox(message(5)["id"])
    inbox.begin(iso(CONNECTED + timedelta(hours=1)), RESIDENT)
    assert inbox.position == inbox.resume_from == message(5)["id"]
    inbox.bring([message(4), message(6)])
    assert taken(inbox) == [4, 6]


def test_a_message_that_a_resume_brings_after_a_newer_one_is_late() -> None:
    inbox = opened()
    inbox.hold(0)
    inbox.post(message(5))
    inbox.release()
    inbox.bring([message(number) for number in (3, 4, 5, 6)])
    marked = [(got["number"], got.get("late")) for got in iter(inbox.take, None)]
    assert marked == [(5, None), (3, True), (4, True), (6, None)]


def test_a_message_that_a_resume_brings_before_newer_ones_is_not_late() -> None:
    inbox = opened()
    inbox.hold(0)
    inbox.post(message(5))
    inbox.post(message(5))
    inbox.bring([message(3), message(4)])
    assert [got.get("late") for got in iter(inbox.take, None)] == [None, None]
    inbox.release()
    assert taken(inbox) == [5]


class World:
    """A server that retains messages, posts some of them, and answers resumes page by page or not at all."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.yielded: list[int] = []
        self.inbox = opened()

    def send(self, arrives: bool) -> None:
        self.sent.append(message(len(self.sent) + 1))
        if arrives:
            self.inbox.post(self.sent[-1])

    def resume(self, most: int) -> None:
        """Bring the first messages of a resume, `most` at most; the rest of it is refused."""
        after = self.inbox.resume_from or ""
        start = max(0, sum(sent["id"] <= after for sent in self.sent) - 2)
        self.inbox.bring([dict(sent) for sent in self.sent[start : start + most]])

    def take(self) -> None:
        if got := self.inbox.take():
            self.yielded.append(got["number"])

    def restart(self) -> None:
        """Go on in another process, which knows the position and nothing else."""
        self.inbox = Inbox(self.inbox.position)
        self.yielded = [
            number for number in self.yielded if message(number)["id"] <= str(self.inbox.position)
        ]


STEPS = st.lists(
    st.tuples(st.just("send"), st.booleans())
    | st.tuples(st.just("resume"), st.integers(0, 9))
    | st.tuples(st.just("take"))
    | st.tuples(st.just("hold"))
    | st.tuples(st.just("release"))
    | st.tuples(st.just("restart")),
    max_size=40,
)


@settings(max_examples=300)
@given(steps=STEPS)
def test_every_message_is_taken_once_and_a_restart_from_the_position_misses_none(
    steps: Sequence[tuple[Any, ...]],
) -> None:
    world = World()
    held = False
    for name, *arguments in steps:
        if name == "hold" and not held:
            world.inbox.hold(0)
            held = True
        elif name == "release" and held:
            world.inbox.release()
            held = False
        elif name not in ("hold", "release"):
            getattr(world, name)(*arguments)
            held = held and name != "restart"
        position = str(world.inbox.position)
        before = [sent["number"] for sent in world.sent if sent["id"] <= position]
        assert set(before) <= set(world.yielded)
    world.inbox.release()
    world.resume(len(world.sent))
    for _ in range(2 * len(world.sent)):
        world.take()
    assert set(world.yielded) == {sent["number"] for sent in world.sent}
    if not any(name == "restart" for name, *_ in steps):
        assert len(world.yielded) == len(world.sent)


@pytest.mark.parametrize("audiences", [("admin", "north"), ("resident", None), ("resident", "south")])
@pytest.mark.parametrize("reconnected", [False, True])
def test_other_audiences_are_resumed_from_where_the_connection_before_was_opened(
    audiences: tuple[str, str | None], reconnected: bool
) -> None:
    inbox = opened()
    inbox.bring([message(10)])
    inbox.post(message(20))
    inbox.begin(iso(CONNECTED + timedelta(seconds=30 if reconnected else 0)), audiences)
    assert message(-1)["id"] < (inbox.resume_from or "") <= message(0)["id"]
    assert taken(inbox) == [10, 20]
    assert inbox.position == inbox.resume_from, "a later client would fetch it too"
    inbox.bring([message(5), message(10)])
    assert taken(inbox) == [5]
    assert inbox.position == inbox.resume_from == message(10)["id"]
    inbox.begin(iso(CONNECTED + timedelta(seconds=30)), audiences)
    assert inbox.resume_from == message(10)["id"]


# ---- whole connections: rounds of ping and resume, losses, refusals and roll-overs


class Server:
    """Retains messages, posts some of them to the open connections, and answers requests or does not."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[Message] = []
        self.yielded: list[int] = []
        self.inbox = Inbox()
        self.sessions: list[Session] = []
        self.requests: dict[int, Message] = {}

    def open(self) -> None:
        if len(self.sessions) < 2:
            self.sessions.append(self.inbox.open(self.now))

    def lose(self) -> None:
        if self.sessions:
            self.requests.pop(id(self.sessions.pop(0)), None)

    def send(self, arrives: bool) -> None:
        self.sent.append(message(len(self.sent) + 1))
        if arrives:
            for _ in self.sessions:
                self.inbox.post(self.sent[-1])

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.inbox.advance(self.now)

    def answer(self, kind: str) -> None:
        for session in list(self.sessions):
            request = session.request(self.now) or self.requests.get(id(session))
            if request is None:
                continue
            self.requests.pop(id(session), None)
            if kind == "refuse":
                session.answered({"type": "error", "code": "internal"}, self.now)
            elif kind == "time out":
                session.unanswered(self.now)
            elif kind == "later":
                self.requests[id(session)] = request
            else:
                session.answered(self.reply(request), self.now)
            if session.lost:
                self.sessions.remove(session)

    def reply(self, request: Message) -> Message:
        if request["action"] == "ping":
            end = iso(CONNECTED + timedelta(hours=2))
            return {"type": "pong", "connectedAt": iso(CONNECTED), "reconnectBy": end, "role": "resident"}
        after = str(request.get("cursor") or request["after"])
        known = sum(sent["id"] <= after for sent in self.sent)
        start = known if "cursor" in request else max(0, known - 2)
        page = [dict(sent) for sent in self.sent[start : start + 3]]
        more = len(self.sent) > start + 3
        return {"type": "resumed", "messages": page, "more": more, "cursor": page[-1]["id"] if more else None}

    def take(self) -> None:
        if got := self.inbox.take():
            self.yielded.append(got["number"])


EVENTS = st.lists(
    st.tuples(st.just("send"), st.booleans())
    | st.tuples(st.just("answer"), st.sampled_from(["well", "well", "well", "refuse", "time out", "later"]))
    | st.tuples(st.just("wait"), st.sampled_from([0.5, 4.0, 400.0]))
    | st.tuples(st.sampled_from(["open", "lose", "take"])),
    max_size=60,
)


@settings(max_examples=300)
@given(events=EVENTS)
def test_connections_that_break_and_requests_that_fail_lose_and_repeat_nothing(
    events: Sequence[tuple[Any, ...]],
) -> None:
    server = Server()
    server.open()
    server.answer("well")
    for name, *arguments in events:
        getattr(server, name)(*arguments)
        position = server.inbox.position or ""
        reached = {sent["number"] for sent in server.sent if sent["id"] <= position}
        assert reached <= set(server.yielded)
    server.lose()
    server.lose()
    server.open()
    deadline = server.now + 100
    while set(server.yielded) != {sent["number"] for sent in server.sent}:
        server.answer("well")
        server.wait(0.1)
        server.take()
        assert server.now < deadline, "a message is never yielded"
    server.take()
    assert len(server.yielded) == len(server.sent)


def test_a_message_that_arrived_by_itself_is_not_counted_as_missed() -> None:
    inbox = opened()
    inbox.hold(0)
    inbox.post(message(2))
    assert inbox.bring([message(1), message(2)]) == 1
