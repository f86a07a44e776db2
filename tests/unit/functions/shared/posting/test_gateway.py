import asyncio
import random
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.shared.instants import HANDSHAKE_SECONDS
from functions.shared.posting import gateway
from functions.shared.posting.gateway import ATTEMPTS, Pace, Posted, Recipient
from tests.support.functions import Keys, properties, shorten_timeouts
from tests.support.loopback import (
    BODY_CUT,
    CHUNKED,
    DIES_LATER,
    GARBAGE,
    IN_PIECES,
    OK,
    RESET,
    SILENT,
    TRUNCATED,
    Answer,
    Endpoint,
    Request,
    Session,
    answer,
    gateway_to,
    scripted,
)

BODY = '{"type":"alert","payload":{"text":"é🌍"}}'.encode()
LONG = 20.0
"""Seconds that no test here comes near."""

pytestmark = pytest.mark.usefixtures("no_waiting")


def old(*connection_ids: str) -> list[Recipient]:
    """Recipients whose handshake is long past."""
    return [Recipient(name, f"user of {name}", time.time() - 3600) for name in connection_ids]


def young(*connection_ids: str) -> list[Recipient]:
    """Recipients who may still be in their handshake."""
    return [Recipient(name, f"user of {name}", time.time()) for name in connection_ids]


def post(url: str, recipients: Sequence[Recipient], seconds: float = LONG, concurrency: int = 8) -> Posted:
    with gateway_to(url, concurrency) as opened:
        return opened.post(recipients, BODY, time.monotonic() + seconds)


def outcomes(posted: Posted) -> dict[str, str]:
    return {who.connection_id: outcome for who, outcome in posted.outcomes}


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for an answer."""
    shorten_timeouts(monkeypatch, 0.1)


# What arrives


def test_every_recipient_gets_the_body_at_the_path_of_its_connection() -> None:
    ids = ["L0SM9cOFvHcCIhw=", "a+b/c%d", "é 世 ~", "c4"]
    with Endpoint(scripted({})) as endpoint:
        posted = post(endpoint.url, old(*ids))
    assert [who.connection_id for who, _ in posted.outcomes] == ids
    assert posted == Posted([(who, "delivered") for who, _ in posted.outcomes], retries=0, throttled=0)
    assert sorted(request.connection_id for request in endpoint.requests) == sorted(ids)
    assert {request.body for request in endpoint.requests} == {BODY}
    assert all("AKIDFIRST/" in request.headers["authorization"] for request in endpoint.requests)


def test_a_body_larger_than_the_sockets_buffers_arrives_whole() -> None:
    body = random.Random(1).randbytes(6_000_000)
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url) as opened:
        posted = opened.post(old("c1", "c2"), body, time.monotonic() + LONG)
    assert posted.count("delivered") == 2
    assert {request.body for request in endpoint.requests} == {body}


def test_nobody_to_post_to_is_nothing_posted() -> None:
    with Endpoint(scripted({})) as endpoint:
        assert post(endpoint.url, []) == Posted([])
    assert endpoint.requests == []


# What is answered


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "delivered"), (400, "failed"), (403, "failed"), (413, "failed")],
)
def test_a_final_answer_is_taken_at_its_word(status: int, outcome: str) -> None:
    with Endpoint(scripted({"c1": [answer(status), OK]})) as endpoint:
        posted = post(endpoint.url, old("c1"))
    assert (outcomes(posted), posted.retries) == ({"c1": outcome}, 0)
    assert endpoint.posts_to("c1") == 1


@pytest.mark.parametrize(
    "fault",
    [answer(429), answer(500), answer(502), answer(503), answer(503, close=True), RESET, TRUNCATED, GARBAGE],
    ids=["429", "500", "502", "503", "503-close", "reset", "truncated", "garbage"],
)
def test_a_transient_fault_is_tried_again(fault: Answer) -> None:
    with Endpoint(scripted({"c1": [fault, fault, OK]})) as endpoint:
        posted = post(endpoint.url, old("c1", "c2"), concurrency=2)
    assert outcomes(posted) == {"c1": "delivered", "c2": "delivered"}
    assert endpoint.posts_to("c1") == 3
    assert endpoint.posts_to("c2") == 1


@pytest.mark.parametrize("fault", [answer(429), answer(500), TRUNCATED], ids=["429", "500", "truncated"])
def test_a_fault_that_stays_is_a_failure_after_the_last_attempt(fault: Answer) -> None:
    with Endpoint(scripted({"c1": [fault]})) as endpoint:
        posted = post(endpoint.url, old("c1", "c2"))
    assert outcomes(posted) == {"c1": "failed", "c2": "delivered"}
    assert endpoint.posts_to("c1") == ATTEMPTS
    assert posted.retries == ATTEMPTS - 1
    assert posted.throttled == (ATTEMPTS if fault == answer(429) else 0)


def test_throttled_posts_are_counted_whatever_became_of_them() -> None:
    with Endpoint(
        scripted({"c1": [answer(429), answer(429), OK], "c2": [answer(429), answer(403)]})
    ) as endpoint:
        posted = post(endpoint.url, old("c1", "c2"))
    assert (posted.throttled, posted.retries) == (3, 3)
    assert outcomes(posted) == {"c1": "delivered", "c2": "failed"}


def test_no_answer_in_time_is_tried_again_on_another_connection(hurried: None) -> None:
    with Endpoint(scripted({"c1": [SILENT, OK]})) as endpoint:
        posted = post(endpoint.url, old("c1"))
    assert (outcomes(posted), posted.retries) == ({"c1": "delivered"}, 1)
    assert len({request.stream for request in endpoint.requests}) == 2


def test_one_recipient_of_an_endpoint_that_is_slow_for_everybody_has_time_for_its_second_post(
    hurried: None,
) -> None:
    """Each answer takes twice the time-out. A batch of one has no others to tell slow from dead by."""

    async def slowly(request: Request) -> Answer:
        await asyncio.sleep(0.2)
        return OK

    with Endpoint(slowly) as endpoint:
        posted = post(endpoint.url, old("c1"))
    assert (outcomes(posted), posted.retries) == ({"c1": "delivered"}, 1)
    assert endpoint.posts_to("c1") == 2


def test_a_connection_that_never_answers_fails_after_a_second_try(hurried: None) -> None:
    with Endpoint(scripted({"c1": [SILENT]})) as endpoint:
        posted = post(endpoint.url, old("c1", "c2"))
    assert outcomes(posted) == {"c1": "failed", "c2": "delivered"}
    assert endpoint.posts_to("c1") == gateway.POST_TIMEOUTS


@pytest.mark.parametrize(
    ("given", "streams"),
    [(IN_PIECES, 1), (CHUNKED, 3), (BODY_CUT, 3)],
    ids=["in pieces", "chunked", "body cut"],
)
def test_the_status_counts_and_a_connection_is_used_again_if_its_answer_was_read_to_the_end(
    given: Answer, streams: int
) -> None:
    with Endpoint(scripted({}, otherwise=[given])) as endpoint:
        posted = post(endpoint.url, old("c1", "c2", "c3"), concurrency=1)
    assert (posted.count("delivered"), posted.retries) == (3, 0)
    assert endpoint.streams == streams


@pytest.mark.parametrize("seconds", [LONG, 0.05], ids=["time-out", "deadline"])
def test_the_status_of_an_answer_whose_body_never_ends_counts(hurried: None, seconds: float) -> None:
    with Endpoint(scripted({"c1": [Answer(BODY_CUT.pieces, "silence")]})) as endpoint:
        posted = post(endpoint.url, old("c1"), seconds)
    assert (outcomes(posted), posted.retries) == ({"c1": "delivered"}, 0)


# 410


def test_a_connection_that_answers_410_is_asked_again_before_it_counts_as_gone() -> None:
    with Endpoint(scripted({"gone": [answer(410)], "live": [answer(410), OK]})) as endpoint:
        posted = post(endpoint.url, old("gone", "live"))
    assert (outcomes(posted), posted.retries) == ({"gone": "gone", "live": "delivered"}, 2)
    assert endpoint.posts_to("gone") == endpoint.posts_to("live") == 2


def test_between_the_two_is_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with Endpoint(scripted({"gone": [answer(410)]})) as endpoint:
        posted = post(endpoint.url, old("gone", "c1"))
    first, second = (request.at for request in endpoint.requests if request.connection_id == "gone")
    assert outcomes(posted) == {"gone": "gone", "c1": "delivered"}
    assert 1.0 <= second - first < 1.5


def test_other_faults_between_two_410s_change_nothing() -> None:
    with Endpoint(scripted({"c1": [answer(410), answer(503), RESET, answer(410)]})) as endpoint:
        posted = post(endpoint.url, old("c1"), concurrency=1)
    assert outcomes(posted) == {"c1": "gone"}


def test_one_410_is_a_failure_when_the_attempts_end() -> None:
    with Endpoint(scripted({"c1": [*[answer(503)] * (ATTEMPTS - 1), answer(410)]})) as endpoint:
        posted = post(endpoint.url, old("c1"))
    assert outcomes(posted) == {"c1": "failed"}


def test_one_410_is_a_failure_when_there_is_no_time_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody waits for the deadline then."""
    monkeypatch.setattr(gateway, "GONE_AGAIN_SECONDS", LONG)
    with Endpoint(scripted({"c1": [answer(410)]})) as endpoint:
        started = time.monotonic()
        posted = post(endpoint.url, old("c1", "c2"), seconds=LONG / 2)
    assert outcomes(posted) == {"c1": "failed", "c2": "delivered"}
    assert time.monotonic() - started < LONG / 4


# The handshake


def test_a_410_during_the_handshake_is_tried_again() -> None:
    with Endpoint(scripted({"c1": [answer(410), answer(410), OK]})) as endpoint:
        posted = post(endpoint.url, young("c1"))
    assert (outcomes(posted), posted.retries) == ({"c1": "delivered"}, 2)


def test_a_410_during_the_handshake_does_not_tell_that_a_connection_is_gone() -> None:
    with Endpoint(scripted({"c1": [answer(410)]})) as endpoint:
        posted = post(endpoint.url, young("c1"))
    assert outcomes(posted) == {"c1": "failed"}
    assert endpoint.posts_to("c1") == ATTEMPTS


def test_a_handshake_that_ends_within_the_batch_is_over() -> None:
    """Two 410s count from then on."""
    opening = Recipient("c1", "u1", time.time() - HANDSHAKE_SECONDS + 0.3)

    async def gone(request: Request) -> Answer:
        await asyncio.sleep(0.12)
        return answer(410)

    with Endpoint(gone) as endpoint:
        posted = post(endpoint.url, [opening])
    assert (outcomes(posted), endpoint.posts_to("c1")) == ({"c1": "gone"}, 4)


def test_the_handshake_ends_after_ten_seconds() -> None:
    now = time.time()
    assert Recipient("c", "u", now - 9.5).in_handshake()
    assert not Recipient("c", "u", now - 10).in_handshake()


# HTTP connections


def test_connections_are_kept_from_post_to_post_and_from_batch_to_batch() -> None:
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url, concurrency=1) as opened:
        for _ in range(3):
            posted = opened.post(old("c1", "c2", "c3"), BODY, time.monotonic() + LONG)
            assert posted.count("delivered") == 3
    assert len(endpoint.requests) == 9
    assert endpoint.streams == 1


def test_a_connection_that_its_server_will_close_is_not_used_again() -> None:
    closing_some_time = Answer(answer(200, close=True).pieces, "keep")
    with Endpoint(scripted({}, otherwise=[closing_some_time])) as endpoint:
        posted = post(endpoint.url, old("c1", "c2", "c3"), concurrency=1)
    assert (posted.count("delivered"), posted.retries) == (3, 0)
    assert endpoint.streams == 3


def test_kept_connections_that_have_died_are_replaced_without_counting_as_failures() -> None:
    with Endpoint(scripted({}, otherwise=[DIES_LATER])) as endpoint, gateway_to(endpoint.url) as opened:
        for _ in range(3):
            posted = opened.post(old("c1", "c2", "c3", "c4"), BODY, time.monotonic() + LONG)
            assert (posted.count("delivered"), posted.retries) == (4, 0)
            while endpoint.open:
                time.sleep(0.001)
    assert len(endpoint.requests) == 12


def test_a_kept_connection_that_dies_of_the_request_is_replaced_without_counting_as_a_failure() -> None:
    with (
        Endpoint(scripted({"c2": [RESET, OK]})) as endpoint,
        gateway_to(endpoint.url, concurrency=1) as opened,
    ):
        posted = opened.post(old("c1", "c2"), BODY, time.monotonic() + LONG)
    assert (posted.count("delivered"), posted.retries) == (2, 0)
    assert endpoint.posts_to("c2") == 2


def test_kept_connections_that_have_died_together_cost_no_attempt_either() -> None:
    frozen: set[int] = set()

    async def dead_since(request: Request) -> Answer:
        return RESET if request.stream in frozen else OK

    with Endpoint(dead_since) as endpoint, gateway_to(endpoint.url, concurrency=4) as opened:
        opened.post(old("c1", "c2", "c3", "c4"), BODY, time.monotonic() + LONG)
        frozen.update(request.stream for request in endpoint.requests)
        posted = opened.post(old("c5"), BODY, time.monotonic() + LONG)
    assert (outcomes(posted), posted.retries) == ({"c5": "delivered"}, 0)
    assert endpoint.posts_to("c5") == 2


def test_a_post_whose_connection_died_is_repeated_on_a_new_one_though_others_are_kept() -> None:
    """Each connection that carried "victim" resets; all others are in good health."""
    with (
        Endpoint(scripted({"victim": [RESET, RESET, RESET, OK]})) as endpoint,
        gateway_to(endpoint.url) as opened,
    ):
        opened.post(old(*(f"c{n}" for n in range(20))), BODY, time.monotonic() + LONG)
        used = {request.stream for request in endpoint.requests}
        posted = opened.post(old("victim"), BODY, time.monotonic() + LONG)
    assert posted.count("delivered") == 1
    first, *others = (request.stream for request in endpoint.requests if request.connection_id == "victim")
    assert first in used
    assert not used & {*others}
    assert len({*others}) == len(others) == 3


def test_a_post_whose_connection_was_replaced_is_repeated_over_kept_ones() -> None:
    script = scripted({"c2": [RESET, answer(503), answer(503), OK]})
    with Endpoint(script) as endpoint, gateway_to(endpoint.url, concurrency=1) as opened:
        posted = opened.post(old("c1", "c2"), BODY, time.monotonic() + LONG)
    assert (posted.count("delivered"), posted.retries) == (2, 2)
    assert endpoint.streams == 2


def test_a_request_that_kills_every_connection_fails_after_as_many_attempts_as_any_other() -> None:
    with Endpoint(scripted({"killer": [RESET]})) as endpoint:
        posted = post(endpoint.url, old("c1", "killer", "c2"), concurrency=1)
    assert outcomes(posted) == {"c1": "delivered", "killer": "failed", "c2": "delivered"}
    assert endpoint.posts_to("killer") == ATTEMPTS + 1  # the first death may have been the connection's own


def test_a_connection_that_idled_too_long_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "IDLE_SECONDS", 0)
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url, concurrency=1) as opened:
        for _ in range(3):
            assert opened.post(old("c1"), BODY, time.monotonic() + LONG).count("delivered") == 1
    assert endpoint.streams == 3


class Freeze:
    """Answers at once until it is `deep`: then no connection that was open answers any more."""

    def __init__(self) -> None:
        self.deep = False
        self.known: set[int] = set()

    async def __call__(self, request: Request) -> Answer:
        if not self.deep:
            self.known.add(request.stream)
            return OK
        return SILENT if request.stream in self.known else OK


def test_one_recipient_does_not_wait_for_one_dead_connection_after_the_other(hurried: None) -> None:
    freeze = Freeze()
    with Endpoint(freeze) as endpoint, gateway_to(endpoint.url) as opened:
        opened.post(old(*(f"c{n}" for n in range(30))), BODY, time.monotonic() + LONG)
        assert len(freeze.known) == 8
        freeze.deep = True
        posted = opened.post(old("one"), BODY, time.monotonic() + LONG)
    assert (outcomes(posted), posted.retries) == ({"one": "delivered"}, 0)
    assert endpoint.posts_to("one") == 2


def test_dead_connections_cost_no_post_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_timeouts(monkeypatch, LONG)
    monkeypatch.setattr(gateway, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(gateway, "REVIEW_SECONDS", 0.01)
    freeze = Freeze()
    with Endpoint(freeze) as endpoint, gateway_to(endpoint.url) as opened:
        opened.post(old(*(f"c{n}" for n in range(30))), BODY, time.monotonic() + LONG)
        freeze.deep = True
        started = time.monotonic()
        posted = opened.post(old(*(f"d{n}" for n in range(50))), BODY, started + LONG)
        took = time.monotonic() - started
    assert (posted.count("delivered"), posted.retries) == (50, 0)
    assert took < LONG / 4
    assert sum(endpoint.posts_to(f"d{n}") for n in range(50)) == 50 + 8  # those that the dead ones carried


def test_kept_connections_that_are_slow_are_not_taken_for_dead(hurried: None) -> None:
    """One post is repeated to find out."""

    async def slowly(request: Request) -> Answer:
        await asyncio.sleep(0.15 if slow else 0)
        return OK

    slow = False
    with Endpoint(slowly) as endpoint, gateway_to(endpoint.url) as opened:
        opened.post(old(*(f"c{n}" for n in range(30))), BODY, time.monotonic() + LONG)
        slow = True
        posted = opened.post(old(*(f"d{n}" for n in range(40))), BODY, time.monotonic() + LONG)
    assert (posted.count("delivered"), posted.retries) == (40, 0)
    assert sum(endpoint.posts_to(f"d{n}") for n in range(40)) <= 41


# Slow for everybody


@pytest.mark.parametrize("healthy", [0, 100], ids=["from the beginning", "later"])
def test_what_is_slow_for_everybody_is_not_repeated(hurried: None, healthy: int) -> None:
    """Every answer takes twice as long as a post may that is alone in it."""

    async def slowly(request: Request) -> Answer:
        if len(endpoint.requests) > healthy:
            await asyncio.sleep(0.2)
        return OK

    audience = old(*(f"c{n}" for n in range(healthy + 40)))
    with Endpoint(slowly) as endpoint:
        posted = post(endpoint.url, audience)
    assert (posted.count("delivered"), posted.retries) == (len(audience), 0)
    assert len(endpoint.requests) == len(audience)


def test_an_endpoint_that_is_slow_for_ever_is_given_up_in_time(hurried: None) -> None:
    with Endpoint(scripted({}, otherwise=[SILENT])) as endpoint:
        started = time.monotonic()
        posted = post(endpoint.url, old(*(f"c{n}" for n in range(6))))
    assert posted.count("failed") == 6
    assert time.monotonic() - started < 2 * gateway.SLOW_TIMEOUT_SECONDS + 1
    assert len(endpoint.requests) == 6 * gateway.POST_TIMEOUTS


def test_some_that_do_not_answer_among_many_that_do_are_dead(
    hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "SLOW_TIMEOUT_SECONDS", LONG)
    silent = {f"s{n}": [SILENT] for n in range(5)}
    with Endpoint(scripted(silent)) as endpoint:
        started = time.monotonic()
        posted = post(endpoint.url, old(*silent, *(f"c{n}" for n in range(100))))
    assert posted.count("failed") == 5
    assert time.monotonic() - started < LONG / 4


def test_connections_that_do_not_open_are_not_slow(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog: nobody answers a SYN any more."""
    monkeypatch.setattr(gateway, "SLOW_TIMEOUT_SECONDS", LONG)
    with socket.socket() as deaf, ExitStack() as waiting:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(2):
            caller = waiting.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(deaf.getsockname())
        started = time.monotonic()
        posted = post(f"http://127.0.0.1:{deaf.getsockname()[1]}/live", old(*(f"c{n}" for n in range(8))))
    assert posted.count("failed") == 8
    assert time.monotonic() - started < LONG / 4


# The quota


def test_a_quota_that_many_meet_is_waited_for_beyond_the_attempts() -> None:
    refusals = [answer(429)] * (ATTEMPTS + 3)
    with Endpoint(scripted({}, otherwise=[*refusals, OK])) as endpoint:
        posted = post(endpoint.url, old(*(f"c{n}" for n in range(20))))
    assert posted.count("delivered") == 20
    assert posted.throttled == 20 * len(refusals)


def test_what_a_crowded_quota_refused_leaves_the_attempts_for_other_faults() -> None:
    fates = {f"c{n}": [answer(429)] * ATTEMPTS + [answer(503)] * (ATTEMPTS - 1) + [OK] for n in range(8)}
    with Endpoint(scripted(fates)) as endpoint:
        posted = post(endpoint.url, old(*fates))
    assert posted.count("delivered") == len(fates)


def test_one_full_buffer_among_many_gets_no_more_than_the_attempts() -> None:
    with Endpoint(scripted({"slow": [answer(429)]})) as endpoint:
        posted = post(endpoint.url, old("slow", *(f"c{n}" for n in range(20))))
    assert (posted.count("delivered"), posted.throttled) == (20, ATTEMPTS)


def test_a_quota_that_stays_full_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "THROTTLED_SECONDS", 0.2)
    with Endpoint(scripted({}, otherwise=[answer(429)])) as endpoint:
        posted = post(endpoint.url, old(*(f"c{n}" for n in range(20))))
    assert posted.count("failed") == 20


@pytest.mark.parametrize("concurrency", [1, 5, 48])
def test_no_more_posts_are_in_flight_than_allowed(concurrency: int) -> None:
    flying, most = 0, 0
    full = asyncio.Event()

    async def slowly(request: Request) -> Answer:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        if most >= concurrency:
            full.set()
        await asyncio.wait_for(full.wait(), LONG)
        await asyncio.sleep(0.002)
        flying -= 1
        return [OK, OK, answer(503), RESET][int(request.connection_id[1:]) % 4]

    recipients = old(*(f"c{n}" for n in range(60)))
    with Endpoint(slowly) as endpoint:
        posted = post(endpoint.url, recipients, concurrency=concurrency)
    assert [who for who, _ in posted.outcomes] == recipients
    assert most == concurrency
    assert endpoint.most_open <= concurrency


def test_one_connection_that_does_not_answer_delays_no_other() -> None:
    everybody_else = {f"c{n}" for n in range(40)}
    answered: set[str] = set()
    settled = threading.Event()

    async def last_of_all(request: Request) -> Answer:
        if request.connection_id == "slow":
            # Had it held up the others, nobody would answer any more, and it would time out.
            await asyncio.to_thread(settled.wait, LONG)
        answered.add(request.connection_id)
        if answered >= everybody_else:
            settled.set()
        return OK

    with Endpoint(last_of_all) as endpoint:
        posted = post(endpoint.url, old("slow", *sorted(everybody_else)), concurrency=2)
    assert (posted.count("delivered"), posted.retries) == (41, 0)


def test_recipients_that_rest_before_another_attempt_hold_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.15)
    faulty = [f"f{n}" for n in range(10)]
    scripts = {name: [answer(503), OK] for name in faulty}
    with Endpoint(scripted(scripts)) as endpoint:
        posted = post(endpoint.url, old(*faulty, "c1"), concurrency=1)
    assert posted.count("delivered") == 11
    order = [request.connection_id for request in endpoint.requests]
    assert order == [*faulty, "c1", *faulty]


# The pace


def assert_paced(requests: Sequence[Request], started: float, pace: Pace) -> None:
    """No post arrives before its turn: `credit` of them at once, and `rate` a second from then on."""
    for number, request in enumerate(requests, start=1):
        assert request.at - started >= max(0, number - pace.credit) / pace.rate - 0.001


@pytest.mark.parametrize(
    "pace", [Pace(rate=200, credit=5), Pace(rate=150.5, credit=0.5), Pace(rate=300, credit=0)]
)
def test_posts_are_no_faster_than_their_pace_and_not_much_slower(pace: Pace) -> None:
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url) as opened:
        started = time.monotonic()
        posted = opened.post(old(*(f"c{n}" for n in range(40))), BODY, started + LONG, pace)
        took = time.monotonic() - started
    assert posted.count("delivered") == 40
    assert_paced(endpoint.requests, started, pace)
    assert took < 40 / pace.rate + 2


def test_repeated_posts_count_against_the_pace() -> None:
    pace = Pace(rate=100, credit=2)
    with (
        Endpoint(scripted({}, otherwise=[answer(429), answer(503), OK])) as endpoint,
        gateway_to(endpoint.url) as opened,
    ):
        started = time.monotonic()
        posted = opened.post(old("c1", "c2", "c3", "c4"), BODY, started + LONG, pace)
    assert (posted.count("delivered"), len(endpoint.requests)) == (4, 12)
    assert_paced(endpoint.requests, started, pace)


def test_whom_the_pace_does_not_reach_before_the_deadline_is_reported_as_failed() -> None:
    recipients = old(*(f"c{n}" for n in range(50)))
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url) as opened:
        posted = opened.post(recipients, BODY, time.monotonic() + 0.25, Pace(rate=40, credit=1))
    assert [who for who, _ in posted.outcomes] == recipients
    assert posted.count("delivered") + posted.count("failed") == 50
    assert 1 <= posted.count("delivered") <= len(endpoint.requests) <= 11


# Pauses and the deadline


def test_pauses_are_fully_jittered_and_grow_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[float, float]] = []

    def jitter(low: float, high: float) -> float:
        ranges.append((low, high))
        return 0.0

    monkeypatch.undo()  # the real pauses, of which none is made
    monkeypatch.setattr(random, "uniform", jitter)
    monkeypatch.setattr(gateway, "ATTEMPTS", 8)
    with Endpoint(scripted({"c1": [answer(503)]})) as endpoint:
        post(endpoint.url, old("c1"))
    assert ranges == [(0, ceiling) for ceiling in (0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0)]


@pytest.mark.parametrize("case", ["resting", "silent", "not begun"])
def test_at_the_deadline_everybody_is_reported_as_they_stand(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: LONG)
    script = {"resting": [answer(503)], "silent": [SILENT], "not begun": [SILENT]}[case]
    recipients = old("c1", "c2", "bad1", "bad2")
    started = time.monotonic()
    with Endpoint(scripted({"bad1": script, "bad2": script})) as endpoint:
        posted = post(endpoint.url, recipients, seconds=0.3, concurrency=1 if case == "not begun" else 8)
    assert time.monotonic() - started < 2
    assert [who for who, _ in posted.outcomes] == recipients
    assert outcomes(posted) == {"c1": "delivered", "c2": "delivered", "bad1": "failed", "bad2": "failed"}
    assert endpoint.posts_to("bad1") == 1
    assert endpoint.posts_to("bad2") == (0 if case == "not begun" else 1)


def test_after_the_deadline_nothing_is_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url) as opened:
        opened.post(old("c1"), BODY, time.monotonic() + LONG)
        posted = opened.post(old("c2", "c3"), BODY, time.monotonic())
    assert outcomes(posted) == {"c2": "failed", "c3": "failed"}
    assert len(endpoint.requests) == 1


# Where nobody answers


def test_an_endpoint_that_takes_no_connections_fails_everybody() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/live"
        posted = post(url, old("c1", "c2"))
    assert outcomes(posted) == {"c1": "failed", "c2": "failed"}
    assert posted.retries == 2 * (ATTEMPTS - 1)


def test_a_host_without_an_address_fails_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unknown(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    started = time.monotonic()
    posted = post(
        "https://abc123.execute-api.eu-west-1.amazonaws.com/live", old(*(f"c{n}" for n in range(50)))
    )
    assert posted.count("failed") == 50
    assert time.monotonic() - started < LONG / 2
    assert set(asked) == {"abc123.execute-api.eu-west-1.amazonaws.com"}


def test_a_resolver_that_hangs_does_not_outlast_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hanging(*_: Any, **__: Any) -> Any:
        over.wait(LONG)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    started = time.monotonic()
    with gateway_to("http://h.example/live") as opened:
        posted = opened.post(old("c1", "c2"), BODY, started + 0.2)
        assert time.monotonic() - started < 2
        over.set()
    assert posted.count("failed") == 2


def test_a_resolver_that_is_slow_leaves_a_post_all_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 0.3 s of 0.4 s, and the answer 0.2 s."""
    real = socket.getaddrinfo

    def slow(*arguments: Any, **options: Any) -> Any:
        threading.Event().wait(0.3)
        return real(*arguments, **options)

    async def late(request: Request) -> Answer:
        await asyncio.sleep(0.2)
        return OK

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    shorten_timeouts(monkeypatch, 0.4)
    with Endpoint(late) as endpoint:
        posted = post(endpoint.url, old("c1"))
    assert (outcomes(posted), posted.retries) == ({"c1": "delivered"}, 0)


def test_a_look_up_that_takes_long_does_not_hold_up_a_host_whose_address_was_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, over, asked = socket.getaddrinfo, threading.Event(), []

    def hanging(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        over.wait(LONG)
        return real(*arguments, **options)

    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url) as opened:
        opened.post(old("c1"), BODY, time.monotonic() + LONG)
        monkeypatch.setattr(socket, "getaddrinfo", hanging)
        monkeypatch.setattr(gateway, "ADDRESS_SECONDS", 0.0)
        opened._wires._addresses_until = 0.0
        opened._wires.drop_idle()
        started = time.monotonic()
        for _ in range(3):
            posted = opened.post(old("c1", "c2"), BODY, started + LONG)
            assert (posted.count("delivered"), posted.retries) == (2, 0)
            opened._wires.drop_idle()
        assert time.monotonic() - started < 1
        over.set()
    assert len(asked) == 1


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


def test_rotated_credentials_sign_what_is_left_of_a_long_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "SIGNATURE_SECONDS", 0)
    session = Session()

    async def rotate(request: Request) -> Answer:
        session.keys = Keys("AKIDSECOND", "other", None)
        return OK if "AKIDSECOND" in request.headers["authorization"] else answer(503)

    with Endpoint(rotate) as endpoint, gateway_to(endpoint.url, session=session) as opened:
        posted = opened.post(old("c1"), BODY, time.monotonic() + LONG)
    assert (posted.count("delivered"), posted.retries) == (1, 1)


# TLS


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's TLS context for 127.0.0.1, whose certificate lies in `folder` as ca.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context


def test_over_tls_posts_arrive_and_connections_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with (
        Endpoint(scripted({"c3": [answer(503), RESET, CHUNKED]}, otherwise=[IN_PIECES]), tls) as endpoint,
        gateway_to(endpoint.url, concurrency=2) as opened,
    ):
        for _ in range(2):
            posted = opened.post(old(*(f"c{n}" for n in range(10))), BODY * 1000, time.monotonic() + LONG)
            assert posted.count("delivered") == 10
    assert {request.body for request in endpoint.requests} == {BODY * 1000}
    assert endpoint.streams <= 6  # of 20 posts and more: 2, one for the reset, one for each chunked answer


def test_over_tls_nothing_is_sent_to_a_server_that_cannot_prove_its_name(tmp_path: Path) -> None:
    with Endpoint(scripted({}), certificate(tmp_path)) as endpoint:
        posted = post(endpoint.url, old("c1", "c2"))
    assert posted.count("failed") == 2
    assert endpoint.requests == []


# Whatever happens

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
def test_whatever_happens_each_recipient_ends_in_the_one_outcome_that_its_answers_give(
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
    # A reset of a kept connection may be an old death: the first of each recipient is not counted.
    assert most - sum("reset" in faults for faults, _ in scripts) <= posted.retries <= most
    assert posted.throttled == sum(faults.count("429") for faults, _ in scripts)
