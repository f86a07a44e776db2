"""`Gateway.post` with every fault that can occur between it and a connection."""

import itertools
import random
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest

from functions.shared.posting import batch
from functions.shared.posting.gateway import Outcome
from tests.support.certificates import certify
from tests.support.fixtures import Figure
from tests.support.functions import shorten_timeouts
from tests.support.gateways import BODY, make_gateway, post, recipients
from tests.support.proxy import (
    BROKEN,
    CUT,
    FAULTS,
    FORBIDDEN,
    GARBAGE,
    GONE,
    RESET_AFTER,
    RESET_BEFORE,
    SILENT,
    TAKEN,
    THROTTLED,
    TOO_LARGE,
    Act,
    FaultProxy,
    Post,
    Script,
    late,
)

A, T = batch.ATTEMPTS, batch.POST_TIMEOUTS

LATE = late(1.0)
"""Answered after the (shortened) timeout of a post."""

CASES: dict[str, tuple[list[Act], Outcome, int, int]] = {
    # the proxy's acts (the last is repeated), outcome, number of posts, number of messages accepted
    "200": ([TAKEN], "delivered", 1, 1),
    "410": ([GONE], "gone", 2, 0),
    "410-spurious": ([GONE, TAKEN], "delivered", 2, 1),
    "429-burst": ([THROTTLED] * 3 + [TAKEN], "delivered", 4, 1),
    "429-always": ([THROTTLED], "failed", A, 0),
    "403": ([FORBIDDEN], "failed", 1, 0),
    "413": ([TOO_LARGE], "failed", 1, 0),
    **{f"{status}-once": ([Act(status), TAKEN], "delivered", 2, 1) for status in (500, 502, 503, 504)},
    **{f"{status}-always": ([Act(status)], "failed", A, 0) for status in (500, 502, 503, 504)},
    "silence-once": ([SILENT, TAKEN], "delivered", 2, 1),
    "silence-always": ([SILENT], "failed", T, 0),
    "late-once": ([LATE, TAKEN], "delivered", 2, 2),
    "late-always": ([LATE], "failed", T, T),
    "reset-before-once": ([RESET_BEFORE, TAKEN], "delivered", 2, 1),
    "reset-before-always": ([RESET_BEFORE], "failed", A, 0),
    "reset-after-once": ([RESET_AFTER, TAKEN], "delivered", 2, 2),
    "reset-after-always": ([RESET_AFTER], "failed", A, A),
    "cut-once": ([CUT, TAKEN], "delivered", 2, 2),
    "cut-always": ([CUT], "failed", A, A),
    "garbage-once": ([GARBAGE, TAKEN], "delivered", 2, 1),
    "gone-in-the-end": ([BROKEN, THROTTLED, GONE], "gone", 4, 0),
    "rejected-in-the-end": ([BROKEN, THROTTLED, FORBIDDEN], "failed", 3, 0),
}


@pytest.fixture(params=["http", "https"])
def either(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A proxy over plain HTTP, or over TLS with a trusted certificate."""
    tls = None
    if request.param == "https":
        tls = certify(tmp_path / "trusted.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    with FaultProxy(tls=tls) as proxy:
        yield proxy


@pytest.mark.usefixtures("quick")
def test_each_connection_gets_the_outcome_of_its_own_faults(either: FaultProxy) -> None:
    # Twice as many recipients as cases, so that the 429s are too few for a used-up quota.
    audience = recipients(2 * len(CASES))
    recipient_of = dict(zip(CASES, audience, strict=False))
    either.reset(Script({recipient_of[name].connection_id: case[0] for name, case in CASES.items()}))

    posted = post(either, audience)

    outcomes = dict(posted.outcomes)
    repeated = 0
    for name, (_, outcome, posts, taken) in CASES.items():
        recipient = recipient_of[name]
        seen = either.posts_to(recipient.connection_id)
        repeated += len(seen) - 1
        if "reset" in name and len(seen) == posts + 1:
            # The post of a kept connection that resets is repeated once without counting an attempt.
            posts += 1
            taken += seen[0].act.taken
        found = (outcomes[recipient], len(seen), sum(each.act.taken for each in seen))
        assert found == (outcome, posts, taken), name
    resets = sum("reset" in name for name in CASES)
    assert repeated - resets <= posted.retries <= repeated


@pytest.mark.usefixtures("quick")
def test_random_faults_for_one_post_in_a_hundred(either: FaultProxy, rng: random.Random) -> None:
    audience = recipients(600)
    either.reset(Script(chance=0.01, seed=rng.getrandbits(32)))

    posted = post(either, audience)

    refused = {p.connection_id for p in either.posts if p.act in (FORBIDDEN, TOO_LARGE)}
    assert {who.connection_id for who, outcome in posted.outcomes if outcome != "delivered"} == refused


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [*FAULTS, "late"])
def test_fault_of_many_recipients_does_not_affect_the_others(
    proxy: FaultProxy, rng: random.Random, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    audience, act = recipients(24), FAULTS.get(fault, late(9.0))
    if fault == "late":
        # With half of the posts late, or on a machine that is as slow, the endpoint would count as slow.
        audience = recipients(60)
        shorten_timeouts(monkeypatch, 2.0)
    bad = set(rng.sample(audience, 12))
    proxy.reset(Script({who.connection_id: [act] for who in bad}))

    posted = post(proxy, audience)

    assert {who for who, outcome in posted.outcomes if outcome != "delivered"} == bad
    assert all(len(proxy.posts_to(who.connection_id)) == 1 for who in set(audience) - bad)


@pytest.mark.usefixtures("quick")
def test_posts_of_ten_broadcasts_to_a_slow_endpoint_are_not_repeated(
    proxy: FaultProxy, rng: random.Random
) -> None:
    """Ten batches of 100 connections post to an endpoint that answers 320 posts per POST_TIMEOUT_SECONDS.

    With 640 posts in flight, an answer takes up to twice that timeout. The endpoint answers the first 640 in
    random order, so that no batch gets all of its answers before the others.
    """
    batches, size, in_flight = 10, 100, 64
    shortest = batch.POST_TIMEOUT_SECONDS / 320
    first = batches * in_flight
    queue = itertools.chain(rng.sample(range(first), first), itertools.count(first))
    began: list[float] = []

    def slowly(seen: Post) -> Act:
        began.append(seen.arrived)
        turn = began[0] + next(queue) * shortest
        return late(max(0.0, turn - seen.arrived))

    proxy.reset(Script(decide=slowly))
    carriers = [make_gateway(proxy.endpoint, concurrency=in_flight) for _ in range(batches)]
    audiences = [recipients(size) for _ in range(batches)]
    deadline = time.monotonic() + 20
    with ThreadPoolExecutor(batches) as threads:
        posted = list(
            threads.map(
                lambda pair: pair[0].post(pair[1], BODY, deadline), zip(carriers, audiences, strict=True)
            )
        )

    assert sum(each.count("delivered") for each in posted) == batches * size
    assert len(proxy.posts) < 1.01 * batches * size


@pytest.mark.usefixtures("quick")
def test_client_whose_posts_always_reset_gets_few_copies(proxy: FaultProxy) -> None:
    """Each reset breaks a kept connection, and the other recipients' posts leave many."""
    audience = recipients(200)
    resetting = audience[100]
    proxy.reset(Script({resetting.connection_id: [RESET_AFTER]}))

    posted = post(proxy, audience)

    assert posted.count("delivered") == len(audience) - 1
    assert proxy.taken[resetting.connection_id] <= A + 1


@pytest.mark.usefixtures("quick")
def test_quota_that_is_used_up_for_longer_than_the_attempts_fails_no_recipient(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "THROTTLED_SECONDS", 10)
    free = time.monotonic() + 1
    proxy.reset(Script(decide=lambda seen: THROTTLED if time.monotonic() < free else None))

    posted = post(proxy, recipients(30))

    assert posted.count("delivered") == 30
    assert posted.throttled > 30 * A


# ---- deadlines


@pytest.mark.parametrize(
    "act", [THROTTLED, BROKEN, SILENT, RESET_BEFORE, late(60)], ids=["429", "500", "silence", "reset", "late"]
)
def test_deadline_ends_the_retries_and_the_rest_fails(proxy: FaultProxy, act: Act) -> None:
    audience = recipients(40)
    bad = set(audience[::2])
    proxy.reset(Script({who.connection_id: [act] for who in bad}))
    started = time.monotonic()

    posted = post(proxy, audience, seconds=0.7, gateway=make_gateway(proxy.endpoint, concurrency=64))

    assert time.monotonic() - started < 1.2
    assert {who for who, outcome in posted.outcomes if outcome == "failed"} == bad
    assert max(seen.arrived for seen in proxy.posts) < started + 0.75
    before = len(proxy.posts)
    time.sleep(0.3)  # the absence of later posts is no condition that can be awaited
    assert len(proxy.posts) == before


def test_recipients_that_were_never_posted_to_fail(proxy: FaultProxy) -> None:
    audience = recipients(50)
    proxy.reset(Script(otherwise=late(0.2)))

    posted = post(proxy, audience, seconds=0.5, gateway=make_gateway(proxy.endpoint, concurrency=4))

    assert 4 <= posted.count("delivered") <= 12
    assert posted.count("failed") == 50 - posted.count("delivered")


# ---- a connection that does not answer


def test_connection_that_never_answers_delays_no_other(
    proxy: FaultProxy, rng: random.Random, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    """Compare the 99th percentile of the other posts' completion, in alternating rounds, at the proxy."""
    timeout = 0.8
    shorten_timeouts(monkeypatch, timeout)
    carrier = make_gateway(proxy.endpoint, concurrency=64)
    post(proxy, recipients(100), gateway=carrier)  # opens the connections

    def p99(acts: list[Act]) -> float:
        audience = recipients(300)
        odd = rng.choice(audience[:200])
        proxy.reset(Script({odd.connection_id: acts}, otherwise=late(0.01)))
        started = time.monotonic()
        posted = post(proxy, audience, gateway=carrier)
        assert posted.count("delivered") == 299 + (acts == [TAKEN])
        healthy = [
            p.answered - started for p in proxy.posts if p.answered and p.connection_id != odd.connection_id
        ]
        return quantiles(healthy, n=100)[98]

    rounds = [(p99([TAKEN]), p99([SILENT])) for _ in range(7)]

    without_silent = median(without for without, _ in rounds)
    with_silent = median(with_one for _, with_one in rounds)
    assert with_silent < timeout, "the round must end before the silent post times out"
    name = f"p99 of 299 connections while one never answers, {without_silent * 1000:.0f} ms without it"
    figure(name, with_silent, 1.5 * without_silent)


# ---- dead connections, names and certificates


def test_sockets_that_died_between_two_calls_cause_neither_a_failure_nor_a_retry(either: FaultProxy) -> None:
    carrier = make_gateway(either.endpoint, concurrency=32)
    post(either, recipients(200), gateway=carrier)
    for audience in (recipients(3), recipients(200)):
        assert either.close_idle() > 0
        either.reset()

        posted = post(either, audience, gateway=carrier)

        assert (posted.count("delivered"), posted.retries) == (len(audience), 0)
        assert set(either.taken.values()) == {1}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("wrong", ["untrusted", "expired", "another-name"])
def test_nothing_is_posted_to_a_server_with_an_invalid_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    tls = certify(
        tmp_path / "shown.pem",
        address="127.0.0.2" if wrong == "another-name" else "127.0.0.1",
        days=-0.5 if wrong == "expired" else 1,
    )
    certify(tmp_path / "other.pem")
    trusted = "other.pem" if wrong == "untrusted" else "shown.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / trusted))
    with FaultProxy(tls=tls) as proxy:
        posted = post(proxy, recipients(5))

    assert posted.count("failed") == 5
    assert posted.retries == 5 * (A - 1)
    assert proxy.posts == []


def test_certificate_replaced_during_the_batch_fails_no_recipient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.pem", tmp_path / "bad.pem"
    certify(good)
    tls = certify(bad)
    monkeypatch.setenv("SSL_CERT_FILE", str(good))
    monkeypatch.setattr(batch, "FIRST_BACKOFF_SECONDS", 0.3)
    with FaultProxy(tls=tls) as proxy:
        carrier = make_gateway(proxy.endpoint)
        wrap, handshakes = ssl.SSLContext.wrap_socket, itertools.count()

        def replace_certificate(context: ssl.SSLContext, *arguments: Any, **options: Any) -> Any:
            if next(handshakes) == 10:
                tls.load_cert_chain(good)
            return wrap(context, *arguments, **options)

        monkeypatch.setattr(ssl.SSLContext, "wrap_socket", replace_certificate)
        posted = post(proxy, recipients(10), gateway=carrier)

    assert posted.count("delivered") == 10
    assert posted.retries > 0


class Resolver:
    """A `socket.getaddrinfo` that fails until a given time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, until: float = float("inf")) -> None:
        self.calls = 0
        self._until = until
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.resolve)

    def resolve(self, host: Any, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if time.monotonic() < self._until:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._real("127.0.0.1", *arguments, **options)


def test_name_that_does_not_resolve_fails_every_recipient(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(monkeypatch)
    carrier = make_gateway(f"http://api.example.invalid:{proxy.port}/live")
    started = time.monotonic()

    posted = post(proxy, recipients(30), gateway=carrier)

    assert posted.count("failed") == 30
    assert time.monotonic() - started < 10
    # The look-ups are limited by time, not by the number of posts.
    assert resolver.calls < 60


def test_name_that_resolves_again_fails_no_recipient(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    Resolver(monkeypatch, until=time.monotonic() + 0.2)
    # The backoffs outlast the outage, so that no post uses up its attempts.
    monkeypatch.setattr("random.uniform", lambda low, high: high / 2)
    carrier = make_gateway(f"http://api.example.invalid:{proxy.port}/live")

    posted = post(proxy, recipients(30), gateway=carrier)

    assert posted.count("delivered") == 30
