"""`resume`, asked of `default` without a WebSocket: what the queue gives back, in which order and frames.

All tests share the queues of a role and of all. So each test writes its messages into an hour of the past
that is its own, asks for what came after that hour began, and looks no further than its end.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import urandom

import pytest

from functions.shared.messages import RESUME_OVERLAP_SECONDS, RESUME_PAGE, uuid7
from tests.support.deployment import Deployment, Json
from tests.support.fixtures import Connect
from tests.support.schemas import conforming

YEAR = 365 * 86400


@dataclass
class Past:
    """An hour long ago, in which messages were sent to one client's audiences while it was offline."""

    deployment: Deployment
    connection_id: str
    audiences: list[str]
    began: float = field(default_factory=lambda: time.time() - random.uniform(2 * YEAR, 20 * YEAR))
    written: list[tuple[str, str]] = field(default_factory=list)

    def id_at(self, second: float) -> str:
        """Return a message id of that second of the hour."""
        return uuid7(self.began + second, urandom(10))

    def write(self, audience: str, second: float, size: int = 0, *, kept_for: float = 3600) -> str:
        """Record a message as a broadcast does, its payload of about `size` bytes; return its id."""
        identifier = self.id_at(second)
        envelope = {
            "type": "alert",
            "id": identifier,
            "sentAt": "2020-01-01T00:00:00.000Z",
            "sender": {"service": "test"},
            "payload": {"text": "x" * size},
        }
        self.deployment.tables.Table(self.deployment.outputs.messages_table).put_item(
            Item={
                "audience": audience,
                "messageId": identifier,
                "envelope": json.dumps(conforming("envelope", envelope)),
                "ttl": int(time.time() + kept_for),
            }
        )
        self.written.append((audience, identifier))
        return identifier

    def resume(self, **arguments: str) -> Iterator[Json]:
        """Yield the pages that answer a resume and its cursors, as long as they are about this hour."""
        while True:
            request = {"action": "resume", "id": "resume-1", **arguments}
            page = self.deployment.default(self.connection_id, request)
            yield conforming("server-resumed", page)
            assert page["messages"] or not page["more"], "a client would get no further"
            if not page["more"] or page["messages"][-1]["id"] > self.id_at(3600):
                return
            arguments = {"cursor": page["cursor"]}

    def missed(self, **arguments: str) -> list[str]:
        """Return the ids of this hour that a resume gives back, in its order."""
        return [
            message["id"]
            for page in self.resume(**arguments)
            for message in page["messages"]
            if self.id_at(-3600) < message["id"] < self.id_at(3600)
        ]


@pytest.fixture
def past(deployment: Deployment, connect: Connect, shelter: str) -> Iterator[Past]:
    user = deployment.user("resident", shelter)
    audiences = ["all", "role#resident", f"shelter#{shelter}", f"user#{user.user_id}"]
    past = Past(deployment, connect(user), audiences)
    yield past
    for audience, identifier in past.written:
        key = {"audience": audience, "messageId": identifier}
        deployment.tables.Table(deployment.outputs.messages_table).delete_item(Key=key)


def test_resume_returns_the_messages_of_every_audience_oldest_first(past: Past) -> None:
    sent = [past.write(past.audiences[n % 4], second=60 + n) for n in range(12)]

    assert past.missed(after=past.id_at(0)) == sent


def test_resume_returns_only_the_callers_audiences(past: Past, shelter: str) -> None:
    for audience in ("role#admin", f"shelter#{shelter}-2", "user#somebody-else"):
        past.write(audience, second=60)
    own = past.write(f"shelter#{shelter}", second=61)

    assert past.missed(after=past.id_at(0)) == [own]


def test_resume_returns_a_message_for_several_audiences_once(past: Past) -> None:
    sent = past.write("all", second=60)
    table = past.deployment.tables.Table(past.deployment.outputs.messages_table)
    item = table.get_item(Key={"audience": "all", "messageId": sent})["Item"]
    for audience in past.audiences[1:]:
        table.put_item(Item={**item, "audience": audience})
        past.written.append((audience, sent))

    assert past.missed(after=past.id_at(0)) == [sent]


def test_resume_repeats_what_was_sent_shortly_before_the_position(past: Past) -> None:
    """Two publishers' clocks differ: an older id may have been recorded after a newer one was seen."""
    user = past.audiences[3]
    past.write(user, second=1000 - RESUME_OVERLAP_SECONDS - 1)
    late = past.write(user, second=1000 - RESUME_OVERLAP_SECONDS + 1)
    seen = past.write(user, second=1000)
    missed = past.write(user, second=1001)

    assert past.missed(after=seen) == [late, seen, missed]


def test_unknown_id_is_a_position_in_time(past: Past) -> None:
    past.write(past.audiences[3], second=100)
    missed = [past.write(past.audiences[n], second=1000 + n) for n in range(4)]

    assert past.missed(after=past.id_at(900)) == missed


def test_resume_without_a_position_returns_everything_retained(past: Past) -> None:
    sent = [past.write(audience, second=60 + n) for n, audience in enumerate(past.audiences)]

    assert past.missed() == sent


def test_resume_returns_no_message_past_its_retention(past: Past) -> None:
    user = past.audiences[3]
    for second in range(60, 60 + RESUME_PAGE + 5):
        past.write(user, second, kept_for=-1)
    kept = past.write(user, second=1000)

    assert past.missed(after=past.id_at(0)) == [kept]


@pytest.mark.parametrize(
    ("count", "audience", "size"),
    [
        pytest.param(250, lambda n: n % 4, 2_000, id="500-kilobytes-over-the-audiences"),
        pytest.param(250, lambda n: 0 if n % 25 else 3, 2_000, id="500-kilobytes-nearly-all-for-one"),
        pytest.param(250, lambda n: 0 if n % 25 else 3, 10, id="more-for-one-than-is-read-at-once"),
        pytest.param(20, lambda n: n % 4, 29_000, id="each-nearly-a-frame"),
    ],
)
def test_pages_of_a_resume_have_no_gap_and_no_repetition(
    past: Past, count: int, audience: Callable[[int], int], size: int
) -> None:
    sent = [past.write(past.audiences[audience(n)], 60 + n, size) for n in range(count)]

    pages = list(past.resume(after=past.id_at(0)))

    # `Deployment.default` asserts that every frame is under 32 KB.
    own = [message["id"] for page in pages for message in page["messages"] if message["id"] in set(sent)]
    assert own == sent
    assert len(pages) >= count * size / 32_000
    assert [page["cursor"] is None for page in pages] == [not page["more"] for page in pages]
