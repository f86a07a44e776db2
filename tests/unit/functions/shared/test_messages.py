import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import RFC_4122, UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from functions.shared import messages
from functions.shared.connections import Connection
from functions.shared.messages import RESUME_OVERLAP_SECONDS, Page, Queue, id_time, message_id, uuid7
from tests.support.fake_aws import DynamoDB
from tests.support.functions import properties

NOW = 1_763_900_000.0
LATER = int(time.time()) + 3600
CONNECTION = Connection(
    connection_id="c1=",
    user_id="u1",
    role="resident",
    shelter_id="s1",
    connected_at="2026-11-23T08:00:00.000Z",
    expires_at=LATER,
)
WITHOUT_SHELTER = replace(CONNECTION, shelter_id=None)

MILLISECONDS = st.integers(0, 2**48 - 1)
ENTROPY = st.binary(min_size=10, max_size=32)


@properties
@given(MILLISECONDS, ENTROPY)
def test_a_uuid7_is_valid_and_contains_its_time(milliseconds: int, entropy: bytes) -> None:
    identifier = UUID(uuid7(milliseconds / 1000, entropy))
    assert (identifier.version, identifier.variant) == (7, RFC_4122)
    # A float of seconds may round to the millisecond before.
    assert id_time(str(identifier)) == pytest.approx(milliseconds / 1000, abs=0.0015)


@properties
@given(MILLISECONDS, MILLISECONDS, ENTROPY, ENTROPY)
def test_uuid7s_sort_by_time_as_text(first: int, second: int, one: bytes, other: bytes) -> None:
    if abs(first - second) < 2:  # a float of seconds may round to the millisecond before
        second = (first + 2) % 2**48
    earlier, later = sorted([first, second])
    assert uuid7(earlier / 1000, one) < uuid7(later / 1000, other)


def test_uuid7s_of_one_instant_differ_by_their_entropy() -> None:
    assert len({uuid7(NOW, bytes([n] * 10)) for n in range(256)}) == 256


def test_an_execution_always_has_the_same_message_id() -> None:
    first = message_id("arn:execution:a", NOW)
    assert message_id("arn:execution:a", NOW) == first
    assert message_id("arn:execution:b", NOW) != first
    assert id_time(first) == NOW


def test_an_envelope_has_its_fields_in_a_fixed_order() -> None:
    request: dict[str, Any] = {
        "type": "shelter_update",
        "shelterId": "s1",
        "payload": {"b": [1, 2.5], "a": "日本 🌍"},
    }
    request["sender"] = {"userId": "u1", "role": "admin"}
    text = messages.envelope(request, "id-1", 1_763_900_000.1239)
    assert text == (
        '{"type":"shelter_update","id":"id-1","sentAt":"2025-11-23T12:13:20.123Z",'
        '"sender":{"userId":"u1","role":"admin"},"payload":{"b":[1,2.5],"a":"日本 🌍"},"shelterId":"s1"}'
    )


def test_a_sender_without_a_name_is_unnamed_and_only_shelter_updates_have_a_shelter() -> None:
    envelope = json.loads(messages.envelope({"type": "alert", "payload": {}}, "id-1", NOW))
    assert envelope["sender"] == {"service": "unnamed"}
    assert "shelterId" not in envelope


def test_a_digest_covers_only_the_content() -> None:
    request: dict[str, Any] = {"type": "alert", "target": {"all": True}, "payload": {"b": 1, "a": "日本"}}
    digest = messages.digest(request)
    assert digest == messages.digest({**request, "payload": {"a": "日本", "b": 1}})
    same: list[dict[str, Any]] = [
        {"target": {"roles": ["admin"]}},
        {"offline": "never"},
        {"id": "id-2"},
        {"sender": {"service": "unnamed"}},
    ]
    for change in same:
        assert messages.digest(request | change) == digest, change
    different: list[dict[str, Any]] = [
        {"type": "shelter_update", "shelterId": "s1"},
        {"type": "shelter_update", "shelterId": "s2"},
        {"payload": {"b": 1, "a": "日"}},
        {"sender": {"service": "weather"}},
    ]
    assert len({digest, *(messages.digest(request | change) for change in different)}) == 5


def test_a_number_that_json_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        messages.serialise({"payload": float("inf")})


def put(dynamodb: DynamoDB, audience: str, identifier: str, text: str = "{}", ttl: int = LATER) -> None:
    dynamodb.add("messages", {"audience": audience, "messageId": identifier, "envelope": text, "ttl": ttl})


def read(queue: Queue, connection: Connection, after: str | None, room: int) -> Iterator[Page]:
    """Every page of what a connection missed."""
    page = queue.missed(connection, after, None, room)
    yield page
    while page.cursor is not None:
        page = queue.missed(connection, None, page.cursor, room)
        yield page


AUDIENCES = ["all", "role#resident", "user#u1", "shelter#s1", "user#u2"]
MINE = set(AUDIENCES[:4])

RECORDED = st.lists(
    st.tuples(
        st.sets(st.sampled_from(AUDIENCES), min_size=1, max_size=3),
        st.integers(0, 150),  # bytes of payload
        st.sampled_from([LATER, LATER, LATER, 1]),  # ttl
    ),
    max_size=25,
)
BEHIND = [({"all"}, 0, LATER)] * 4 + [({"user#u1"}, 0, LATER)]
"""One audience whose first page ends long before another's only message."""


@properties
@example(recorded=BEHIND, limit=1, page_size=5, room=500, seen=None)
@example(recorded=[*BEHIND, *BEHIND, *BEHIND], limit=3, page_size=2, room=500, seen=None)
@example(recorded=[*BEHIND[::-1], ({"role#resident"}, 0, LATER)], limit=2, page_size=5, room=500, seen=None)
@given(
    recorded=RECORDED,
    limit=st.integers(1, 5),
    page_size=st.integers(1, 5),
    room=st.integers(1, 500),
    seen=st.none() | st.integers(0, 24),
)
def test_resuming_yields_every_live_message_once_and_in_order_in_pages_that_fit(
    recorded: list[tuple[set[str], int, int]],
    limit: int,
    page_size: int,
    room: int,
    seen: int | None,
    dynamodb: DynamoDB,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(messages, "RESUME_PAGE", limit)
    dynamodb.empty()
    dynamodb.page_size = page_size
    # With this spacing, the overlap includes two messages before the last seen one.
    spacing = RESUME_OVERLAP_SECONDS / 2.5
    ids = [uuid7(NOW + spacing * n, b"entropy...") for n in range(25)]
    for identifier, (audiences, size, ttl) in zip(ids, recorded, strict=False):
        for audience in audiences:
            put(dynamodb, audience, identifier, json.dumps({"id": identifier, "x": "é" * size}), ttl)
    after = None if seen is None else ids[seen]

    pages = list(read(Queue(dynamodb.client, "messages"), CONNECTION, after, room))

    first = 0 if seen is None else seen - 2
    expected = [
        ids[n]
        for n, (audiences, _, ttl) in enumerate(recorded)
        if n >= first and audiences & MINE and ttl == LATER
    ]
    received = [[json.loads(envelope)["id"] for envelope in page.envelopes] for page in pages]
    assert [identifier for page in received for identifier in page] == expected
    assert all(page.envelopes for page in pages[:-1])
    for page in pages:
        bytes_taken = sum(len(envelope.encode()) + 1 for envelope in page.envelopes)
        assert bytes_taken <= room or len(page.envelopes) == 1


def test_a_user_without_a_shelter_gets_no_messages_of_shelters(dynamodb: DynamoDB) -> None:
    identifier = uuid7(NOW, bytes(10))
    put(dynamodb, "shelter#s1", identifier)
    put(dynamodb, "shelter#None", identifier)
    queue = Queue(dynamodb.client, "messages")
    assert queue.missed(WITHOUT_SHELTER, None, None, 1000) == Page([], None)
    assert queue.missed(CONNECTION, None, None, 1000) == Page(["{}"], None)


@pytest.mark.parametrize(
    ("seconds_before", "comes_again"),
    [(0, True), (RESUME_OVERLAP_SECONDS - 1, True), (RESUME_OVERLAP_SECONDS + 1, False)],
)
def test_a_short_overlap_before_the_last_id_seen_is_read_again(
    dynamodb: DynamoDB, seconds_before: int, comes_again: bool
) -> None:
    put(dynamodb, "all", uuid7(NOW - seconds_before, bytes(10)), "late")
    page = Queue(dynamodb.client, "messages").missed(CONNECTION, uuid7(NOW, bytes([255] * 10)), None, 1000)
    assert page == Page(["late"] if comes_again else [], None)


@properties
@given(milliseconds=MILLISECONDS, entropy=ENTROPY)
@example(milliseconds=0, entropy=bytes(10))
def test_a_resume_works_after_an_id_that_no_message_has(
    milliseconds: int, entropy: bytes, dynamodb: DynamoDB
) -> None:
    put_at = 2.0**37
    put(dynamodb, "all", uuid7(put_at, bytes([255] * 10)), "{}")
    page = Queue(dynamodb.client, "messages").missed(CONNECTION, uuid7(milliseconds / 1000, entropy), None, 9)
    assert page == Page(["{}"] if milliseconds / 1000 < put_at + RESUME_OVERLAP_SECONDS else [], None)


def test_pages_with_only_expired_rows_are_skipped(
    dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "RESUME_PAGE", 2)
    for n in range(6):
        put(dynamodb, "all", uuid7(NOW + n, bytes(10)), "expired", ttl=int(time.time()) - 1)
    put(dynamodb, "all", uuid7(NOW + 6, bytes(10)), "live")
    assert Queue(dynamodb.client, "messages").missed(CONNECTION, None, None, 1000) == Page(["live"], None)


def test_the_queue_is_read_consistently(dynamodb: DynamoDB) -> None:
    Queue(dynamodb.client, "messages").missed(CONNECTION, None, None, 1000)
    assert [call["ConsistentRead"] for call in dynamodb.called("Query")] == [True] * 4
