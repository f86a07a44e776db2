"""Whole calls of `Gateway.post`."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.shared.posting.batch import ATTEMPTS
from functions.shared.posting.gateway import Posted
from tests.support.functions import Keys, properties
from tests.support.loopback import (
    BODY,
    BODY_CUT,
    CHUNKED,
    GARBAGE,
    LONG,
    OK,
    RESET,
    TRUNCATED,
    Answer,
    Endpoint,
    Session,
    answer,
    gateway_to,
    old,
    post,
    scripted,
)

pytestmark = pytest.mark.usefixtures("no_waiting")


# What is sent


def test_every_recipient_gets_the_body_at_the_path_of_its_connection() -> None:
    ids = ["L0SM9cOFvHcCIhw=", "a+b/c%d", "é 世 ~", "c4"]
    with Endpoint(scripted({})) as endpoint:
        posted = post(endpoint.url, old(*ids))
    assert [who.connection_id for who, _ in posted.outcomes] == ids
    assert posted == Posted([(who, "delivered") for who, _ in posted.outcomes], retries=0, throttled=0)
    assert sorted(request.connection_id for request in endpoint.requests) == sorted(ids)
    assert {request.body for request in endpoint.requests} == {BODY}
    assert all("AKIDFIRST/" in request.headers["authorization"] for request in endpoint.requests)


def test_a_body_larger_than_the_socket_buffers_arrives_complete() -> None:
    body = random.Random(1).randbytes(6_000_000)
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url) as opened:
        posted = opened.post(old("c1", "c2"), body, time.monotonic() + LONG)
    assert posted.count("delivered") == 2
    assert {request.body for request in endpoint.requests} == {body}


def test_a_batch_without_recipients_posts_nothing() -> None:
    with Endpoint(scripted({})) as endpoint:
        assert post(endpoint.url, []) == Posted([])
    assert endpoint.requests == []


# Credentials


def test_rotated_credentials_sign_the_next_batch() -> None:
    session = Session()
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url, session=session) as opened:
        opened.post(old("c1"), BODY, time.monotonic() + LONG)
        session.keys = Keys("AKIDSECOND", "other", "session-token")
        opened.post(old("c1"), BODY, time.monotonic() + LONG)
    first, second = (request.headers for request in endpoint.requests)
    assert "Credential=AKIDFIRST/" in first["authorization"]
    assert "x-amz-security-token" not in first
    assert "Credential=AKIDSECOND/" in second["authorization"]
    assert second["x-amz-security-token"] == "session-token"


# Properties

FAULTS: dict[str, Answer] = {
    "429": answer(429),
    "500": answer(500),
    "503 and closed": answer(503, close=True),
    "reset": RESET,
    "truncated": TRUNCATED,
    "garbage": GARBAGE,
}
FINAL: dict[str, tuple[Answer, str]] = {
    "200": (OK, "delivered"),
    "200 and closed": (answer(200, close=True), "delivered"),
    "chunked": (CHUNKED, "delivered"),
    "chunked and closed": (Answer(CHUNKED.pieces, "close"), "delivered"),
    "body cut": (BODY_CUT, "delivered"),
    "403": (answer(403), "failed"),
    "413": (answer(413), "failed"),
}


@settings(properties, max_examples=60)
@given(
    scripts=st.lists(
        st.tuples(
            st.lists(st.sampled_from(sorted(FAULTS)), max_size=ATTEMPTS - 1), st.sampled_from(sorted(FINAL))
        ),
        max_size=20,
    ),
    concurrency=st.integers(1, 6),
)
def test_each_recipient_gets_the_outcome_of_its_own_answers(
    scripts: list[tuple[list[str], str]], concurrency: int
) -> None:
    answers = {
        f"c{n}": [*(FAULTS[name] for name in faults), FINAL[last][0]]
        for n, (faults, last) in enumerate(scripts)
    }
    recipients = old(*answers)
    with Endpoint(scripted(answers)) as endpoint:
        posted = post(endpoint.url, recipients, concurrency=concurrency)
    assert [who for who, _ in posted.outcomes] == recipients
    assert [outcome for _, outcome in posted.outcomes] == [FINAL[last][1] for _, last in scripts]
    for n, (faults, _) in enumerate(scripts):
        assert endpoint.posts_to(f"c{n}") == len(faults) + 1
    most = sum(len(faults) for faults, _ in scripts)
    # The first reset of a kept connection is no retry: the connection may have been dead before.
    assert most - sum("reset" in faults for faults, _ in scripts) <= posted.retries <= most
    assert posted.throttled == sum(faults.count("429") for faults, _ in scripts)
