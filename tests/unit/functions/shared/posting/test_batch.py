"""What a batch does with each kind of answer, within its pace, concurrency and deadline."""

import asyncio
import random
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from functions.shared.posting import batch
from functions.shared.posting.batch import ATTEMPTS
from functions.shared.posting.gateway import Pace, Recipient
from functions.shared.posting.recipients import HANDSHAKE_SECONDS
from tests.support.loopback import (
    BODY,
    BODY_CUT,
    CHUNKED,
    GARBAGE,
    IN_PIECES,
    LONG,
    OK,
    RESET,
    SILENT,
    TRUNCATED,
    Answer,
    Endpoint,
    Request,
    answer,
    gateway_to,
    old,
    outcomes,
    post,
    scripted,
    young,
)

pytestmark = pytest.mark.usefixtures("no_waiting")


# Answers


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "delivered"), (400, "failed"), (403, "failed"), (413, "failed")],
)
def test_200_and_4xx_are_final(status: int, outcome: str) -> None:
    with Endpoint(scripted({"c1": [answer(status), OK]})) as endpoint:
        posted = post(endpoint.url, old("c1"))
    assert (outcomes(posted), posted.retries) == ({"c1": outcome}, 0)
    assert endpoint.posts_to("c1") == 1


@pytest.mark.parametrize(
    "fault",
    [answer(429), answer(500), answer(502), answer(503), answer(503, close=True), RESET, TRUNCATED, GARBAGE],
    ids=["429", "500", "502", "503", "503-close", "reset", "truncated", "garbage"],
)
def test_a_transient_fault_is_retried(fault: Answer) -> None:
    with Endpoint(scripted({"c1": [fault, fault, OK]})) as endpoint:
        posted = post(endpoint.url, old("c1", "c2"), concurrency=2)
    assert outcomes(posted) == {"c1": "delivered", "c2": "delivered"}
    assert endpoint.posts_to("c1") == 3
    assert endpoint.posts_to("c2") == 1


@pytest.mark.parametrize("fault", [answer(429), answer(500), TRUNCATED], ids=["429", "500", "truncated"])
def test_a_permanent_fault_is_a_failure_after_the_last_attempt(fault: Answer) -> None:
    with Endpoint(scripted({"c1": [fault]})) as endpoint:
        posted = post(endpoint.url, old("c1", "c2"))
    assert outcomes(posted) == {"c1": "failed", "c2": "delivered"}
    assert endpoint.posts_to("c1") == ATTEMPTS
    assert posted.retries == ATTEMPTS - 1
    assert posted.throttled == (ATTEMPTS if fault == answer(429) else 0)


def test_throttled_posts_are_counted_for_every_outcome() -> None:
    with Endpoint(
        scripted({"c1": [answer(429), answer(429), OK], "c2": [answer(429), answer(403)]})
    ) as endpoint:
        posted = post(endpoint.url, old("c1", "c2"))
    assert (posted.throttled, posted.retries) == (3, 3)
    assert outcomes(posted) == {"c1": "delivered", "c2": "failed"}


def test_a_post_that_times_out_is_retried_on_another_connection(hurried: None) -> None:
    with Endpoint(scripted({"c1": [SILENT, OK]})) as endpoint:
        posted = post(endpoint.url, old("c1"))
    assert (outcomes(posted), posted.retries) == ({"c1": "delivered"}, 1)
    assert len({request.stream for request in endpoint.requests}) == 2


def test_in_a_batch_of_one_the_second_post_gets_the_long_timeout(
    hurried: None,
) -> None:
    """Each answer takes twice the timeout, and a batch of one cannot tell slow from dead."""

    async def slowly(request: Request) -> Answer:
        await asyncio.sleep(0.2)
        return OK

    with Endpoint(slowly) as endpoint:
        posted = post(endpoint.url, old("c1"))
    assert (outcomes(posted), posted.retries) == ({"c1": "delivered"}, 1)
    assert endpoint.posts_to("c1") == 2


def test_a_connection_that_never_answers_fails_after_the_second_post(hurried: None) -> None:
    with Endpoint(scripted({"c1": [SILENT]})) as endpoint:
        posted = post(endpoint.url, old("c1", "c2"))
    assert outcomes(posted) == {"c1": "failed", "c2": "delivered"}
    assert endpoint.posts_to("c1") == batch.POST_TIMEOUTS


@pytest.mark.parametrize(
    ("given", "streams"),
    [(IN_PIECES, 1), (CHUNKED, 3), (BODY_CUT, 3)],
    ids=["in pieces", "chunked", "body cut"],
)
def test_a_connection_is_reused_only_if_its_answer_was_read_to_the_end(given: Answer, streams: int) -> None:
    with Endpoint(scripted({}, otherwise=[given])) as endpoint:
        posted = post(endpoint.url, old("c1", "c2", "c3"), concurrency=1)
    assert (posted.count("delivered"), posted.retries) == (3, 0)
    assert endpoint.streams == streams


@pytest.mark.parametrize("seconds", [LONG, 0.05], ids=["time-out", "deadline"])
def test_the_status_counts_when_the_body_never_ends(hurried: None, seconds: float) -> None:
    with Endpoint(scripted({"c1": [Answer(BODY_CUT.pieces, "silence")]})) as endpoint:
        posted = post(endpoint.url, old("c1"), seconds)
    assert (outcomes(posted), posted.retries) == ({"c1": "delivered"}, 0)


# 410


def test_a_connection_counts_as_gone_after_the_second_410() -> None:
    with Endpoint(scripted({"gone": [answer(410)], "live": [answer(410), OK]})) as endpoint:
        posted = post(endpoint.url, old("gone", "live"))
    assert (outcomes(posted), posted.retries) == ({"gone": "gone", "live": "delivered"}, 2)
    assert endpoint.posts_to("gone") == endpoint.posts_to("live") == 2


def test_the_second_post_after_a_410_is_a_second_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with Endpoint(scripted({"gone": [answer(410)]})) as endpoint:
        posted = post(endpoint.url, old("gone", "c1"))
    first, second = (request.at for request in endpoint.requests if request.connection_id == "gone")
    assert outcomes(posted) == {"gone": "gone", "c1": "delivered"}
    assert 1.0 <= second - first < 1.5


def test_other_faults_between_two_410s_do_not_matter() -> None:
    with Endpoint(scripted({"c1": [answer(410), answer(503), RESET, answer(410)]})) as endpoint:
        posted = post(endpoint.url, old("c1"), concurrency=1)
    assert outcomes(posted) == {"c1": "gone"}


def test_one_410_is_a_failure_when_the_attempts_end() -> None:
    with Endpoint(scripted({"c1": [*[answer(503)] * (ATTEMPTS - 1), answer(410)]})) as endpoint:
        posted = post(endpoint.url, old("c1"))
    assert outcomes(posted) == {"c1": "failed"}


def test_one_410_is_a_failure_when_there_is_no_time_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch ends then, and does not wait for the deadline."""
    monkeypatch.setattr(batch, "GONE_AGAIN_SECONDS", LONG)
    with Endpoint(scripted({"c1": [answer(410)]})) as endpoint:
        started = time.monotonic()
        posted = post(endpoint.url, old("c1", "c2"), seconds=LONG / 2)
    assert outcomes(posted) == {"c1": "failed", "c2": "delivered"}
    assert time.monotonic() - started < LONG / 4


# Handshake


def test_a_410_during_the_handshake_is_retried() -> None:
    with Endpoint(scripted({"c1": [answer(410), answer(410), OK]})) as endpoint:
        posted = post(endpoint.url, young("c1"))
    assert (outcomes(posted), posted.retries) == ({"c1": "delivered"}, 2)


def test_a_410_during_the_handshake_is_a_failure_and_not_gone() -> None:
    with Endpoint(scripted({"c1": [answer(410)]})) as endpoint:
        posted = post(endpoint.url, young("c1"))
    assert outcomes(posted) == {"c1": "failed"}
    assert endpoint.posts_to("c1") == ATTEMPTS


def test_410s_count_once_the_handshake_has_ended_during_the_batch() -> None:
    """The connection is gone after two more 410s."""
    opening = Recipient("c1", "u1", time.time() - HANDSHAKE_SECONDS + 0.3)

    async def gone(request: Request) -> Answer:
        await asyncio.sleep(0.12)
        return answer(410)

    with Endpoint(gone) as endpoint:
        posted = post(endpoint.url, [opening])
    assert (outcomes(posted), endpoint.posts_to("c1")) == ({"c1": "gone"}, 4)


# A slow endpoint


@pytest.mark.parametrize("healthy", [0, 100], ids=["from the beginning", "later"])
def test_posts_to_a_slow_endpoint_are_not_repeated(hurried: None, healthy: int) -> None:
    """Every answer takes twice the timeout of a post."""

    async def slowly(request: Request) -> Answer:
        if len(endpoint.requests) > healthy:
            await asyncio.sleep(0.2)
        return OK

    audience = old(*(f"c{n}" for n in range(healthy + 40)))
    with Endpoint(slowly) as endpoint:
        posted = post(endpoint.url, audience)
    assert (posted.count("delivered"), posted.retries) == (len(audience), 0)
    assert len(endpoint.requests) == len(audience)


def test_an_endpoint_that_never_answers_fails_after_two_long_timeouts(hurried: None) -> None:
    with Endpoint(scripted({}, otherwise=[SILENT])) as endpoint:
        started = time.monotonic()
        posted = post(endpoint.url, old(*(f"c{n}" for n in range(6))))
    assert posted.count("failed") == 6
    assert time.monotonic() - started < 2 * batch.SLOW_TIMEOUT_SECONDS + 1
    assert len(endpoint.requests) == 6 * batch.POST_TIMEOUTS


def test_a_few_silent_connections_among_many_do_not_extend_the_timeout(
    hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "SLOW_TIMEOUT_SECONDS", LONG)
    silent = {f"s{n}": [SILENT] for n in range(5)}
    with Endpoint(scripted(silent)) as endpoint:
        started = time.monotonic()
        posted = post(endpoint.url, old(*silent, *(f"c{n}" for n in range(100))))
    assert posted.count("failed") == 5
    assert time.monotonic() - started < LONG / 4


def test_connections_that_do_not_open_do_not_extend_the_timeout(
    hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's backlog is full, so it answers no SYN."""
    monkeypatch.setattr(batch, "SLOW_TIMEOUT_SECONDS", LONG)
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


# Throttling


def test_a_429_of_many_recipients_is_retried_beyond_the_attempts() -> None:
    refusals = [answer(429)] * (ATTEMPTS + 3)
    with Endpoint(scripted({}, otherwise=[*refusals, OK])) as endpoint:
        posted = post(endpoint.url, old(*(f"c{n}" for n in range(20))))
    assert posted.count("delivered") == 20
    assert posted.throttled == 20 * len(refusals)


def test_429s_of_a_used_up_quota_use_up_no_attempt() -> None:
    fates = {f"c{n}": [answer(429)] * ATTEMPTS + [answer(503)] * (ATTEMPTS - 1) + [OK] for n in range(8)}
    with Endpoint(scripted(fates)) as endpoint:
        posted = post(endpoint.url, old(*fates))
    assert posted.count("delivered") == len(fates)


def test_a_429_of_one_recipient_gets_no_more_than_the_attempts() -> None:
    with Endpoint(scripted({"slow": [answer(429)]})) as endpoint:
        posted = post(endpoint.url, old("slow", *(f"c{n}" for n in range(20))))
    assert (posted.count("delivered"), posted.throttled) == (20, ATTEMPTS)


def test_a_quota_that_stays_used_up_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "THROTTLED_SECONDS", 0.2)
    with Endpoint(scripted({}, otherwise=[answer(429)])) as endpoint:
        posted = post(endpoint.url, old(*(f"c{n}" for n in range(20))))
    assert posted.count("failed") == 20


# Concurrency


@pytest.mark.parametrize("concurrency", [1, 5, 48])
def test_the_concurrency_limits_the_posts_in_flight(concurrency: int) -> None:
    in_flight, most = 0, 0
    full = asyncio.Event()

    async def slowly(request: Request) -> Answer:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        if most >= concurrency:
            full.set()
        await asyncio.wait_for(full.wait(), LONG)
        await asyncio.sleep(0.002)
        in_flight -= 1
        return [OK, OK, answer(503), RESET][int(request.connection_id[1:]) % 4]

    recipients = old(*(f"c{n}" for n in range(60)))
    with Endpoint(slowly) as endpoint:
        posted = post(endpoint.url, recipients, concurrency=concurrency)
    assert [who for who, _ in posted.outcomes] == recipients
    assert most == concurrency
    assert endpoint.most_open <= concurrency


def test_one_connection_that_does_not_answer_delays_no_other() -> None:
    others = {f"c{n}" for n in range(40)}
    answered: set[str] = set()
    settled = threading.Event()

    async def last_of_all(request: Request) -> Answer:
        if request.connection_id == "slow":
            # It answers last. If it delayed the others, this would time out.
            await asyncio.to_thread(settled.wait, LONG)
        answered.add(request.connection_id)
        if answered >= others:
            settled.set()
        return OK

    with Endpoint(last_of_all) as endpoint:
        posted = post(endpoint.url, old("slow", *sorted(others)), concurrency=2)
    assert (posted.count("delivered"), posted.retries) == (41, 0)


def test_a_post_in_backoff_uses_no_connection(
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


# Pace


def assert_paced(requests: Sequence[Request], started: float, pace: Pace) -> None:
    """Check that no post arrives earlier than the pace allows."""
    for number, request in enumerate(requests, start=1):
        assert request.at - started >= max(0, number - pace.credit) / pace.rate - 0.001


@pytest.mark.parametrize(
    "pace", [Pace(rate=200, credit=5), Pace(rate=150.5, credit=0.5), Pace(rate=300, credit=0)]
)
def test_posts_follow_the_pace(pace: Pace) -> None:
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url) as opened:
        started = time.monotonic()
        posted = opened.post(old(*(f"c{n}" for n in range(40))), BODY, started + LONG, pace)
        took = time.monotonic() - started
    assert posted.count("delivered") == 40
    assert_paced(endpoint.requests, started, pace)
    assert took < 40 / pace.rate + 2


def test_retries_count_against_the_pace() -> None:
    pace = Pace(rate=100, credit=2)
    with (
        Endpoint(scripted({}, otherwise=[answer(429), answer(503), OK])) as endpoint,
        gateway_to(endpoint.url) as opened,
    ):
        started = time.monotonic()
        posted = opened.post(old("c1", "c2", "c3", "c4"), BODY, started + LONG, pace)
    assert (posted.count("delivered"), len(endpoint.requests)) == (4, 12)
    assert_paced(endpoint.requests, started, pace)


def test_recipients_that_the_pace_leaves_until_after_the_deadline_fail() -> None:
    recipients = old(*(f"c{n}" for n in range(50)))
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url) as opened:
        posted = opened.post(recipients, BODY, time.monotonic() + 0.25, Pace(rate=40, credit=1))
    assert [who for who, _ in posted.outcomes] == recipients
    assert posted.count("delivered") + posted.count("failed") == 50
    assert 1 <= posted.count("delivered") <= len(endpoint.requests) <= 11


# Backoff and deadline


def test_backoff_has_full_jitter_and_grows_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[float, float]] = []

    def jitter(low: float, high: float) -> float:
        ranges.append((low, high))
        return 0.0

    monkeypatch.undo()  # restores the real limits; the jitter below is always 0
    monkeypatch.setattr(random, "uniform", jitter)
    monkeypatch.setattr(batch, "ATTEMPTS", 8)
    with Endpoint(scripted({"c1": [answer(503)]})) as endpoint:
        post(endpoint.url, old("c1"))
    assert ranges == [(0, ceiling) for ceiling in (0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0)]


@pytest.mark.parametrize("case", ["in backoff", "silent", "not sent"])
def test_at_the_deadline_every_recipient_gets_an_outcome(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: LONG)
    script = {"in backoff": [answer(503)], "silent": [SILENT], "not sent": [SILENT]}[case]
    recipients = old("c1", "c2", "bad1", "bad2")
    started = time.monotonic()
    with Endpoint(scripted({"bad1": script, "bad2": script})) as endpoint:
        posted = post(endpoint.url, recipients, seconds=0.3, concurrency=1 if case == "not sent" else 8)
    assert time.monotonic() - started < 2
    assert [who for who, _ in posted.outcomes] == recipients
    assert outcomes(posted) == {"c1": "delivered", "c2": "delivered", "bad1": "failed", "bad2": "failed"}
    assert endpoint.posts_to("bad1") == 1
    assert endpoint.posts_to("bad2") == (0 if case == "not sent" else 1)


def test_after_the_deadline_nothing_is_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url) as opened:
        opened.post(old("c1"), BODY, time.monotonic() + LONG)
        posted = opened.post(old("c2", "c3"), BODY, time.monotonic())
    assert outcomes(posted) == {"c2": "failed", "c3": "failed"}
    assert len(endpoint.requests) == 1
