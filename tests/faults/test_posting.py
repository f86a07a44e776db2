"""`Gateway.post` against everything that can go wrong between it and a connection."""

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

from functions.shared import gateway
from functions.shared.gateway import Outcome
from tests.conftest import Figure
from tests.faults.certificates import certify
from tests.faults.proxy import (
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
from tests.faults.support import BODY, Session, make_gateway, post, recipients
from tests.unit.functions.support import shorten_timeouts

A, T = gateway.ATTEMPTS, gateway.POST_TIMEOUTS

LATE = late(1.0)
"""After the (shortened) timeout of a post."""

CASES: dict[str, tuple[list[Act], Outcome, int, int]] = {
    # what the connection's posts meet (the last for ever), outcome, posts, messages taken
    "200": ([TAKEN], "delivered", 1, 1),
    "410": ([GONE], "gone", 2, 0),
    "410-spurious": ([GONE, TAKEN], "delivered", 2, 1),
    "429-burst": ([THROTTLED] * 3 + [TAKEN], "delivered", 4, 1),
    "429-for-ever": ([THROTTLED], "failed", A, 0),
    "403": ([FORBIDDEN], "failed", 1, 0),
    "413": ([TOO_LARGE], "failed", 1, 0),
    **{f"{status}-once": ([Act(status), TAKEN], "delivered", 2, 1) for status in (500, 502, 503, 504)},
    **{f"{status}-for-ever": ([Act(status)], "failed", A, 0) for status in (500, 502, 503, 504)},
    "silence-once": ([SILENT, TAKEN], "delivered", 2, 1),
    "silence-for-ever": ([SILENT], "failed", T, 0),
    "late-once": ([LATE, TAKEN], "delivered", 2, 2),
    "late-for-ever": ([LATE], "failed", T, T),
    "reset-before-once": ([RESET_BEFORE, TAKEN], "delivered", 2, 1),
    "reset-before-for-ever": ([RESET_BEFORE], "failed", A, 0),
    "reset-after-once": ([RESET_AFTER, TAKEN], "delivered", 2, 2),
    "reset-after-for-ever": ([RESET_AFTER], "failed", A, A),
    "cut-once": ([CUT, TAKEN], "delivered", 2, 2),
    "cut-for-ever": ([CUT], "failed", A, A),
    "garbage-once": ([GARBAGE, TAKEN], "delivered", 2, 1),
    "gone-at-last": ([BROKEN, THROTTLED, GONE], "gone", 4, 0),
    "refused-at-last": ([BROKEN, THROTTLED, FORBIDDEN], "failed", 3, 0),
}


@pytest.fixture(params=["http", "https"])
def either(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A proxy over plain HTTP, and one over TLS whose certificate is trusted."""
    tls = None
    if request.param == "https":
        tls = certify(tmp_path / "trusted.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    with FaultProxy(tls=tls) as proxy:
        yield proxy


@pytest.mark.usefixtures("quick")
def test_each_connection_meets_its_own_fate_and_its_outcome_says_so(either: FaultProxy) -> None:
    # With so many others, those that meet a 429 are no crowd.
    audience = recipients(2 * len(CASES))
    fates = dict(zip(audience, CASES.items(), strict=False))
    either.reset(Script({who.connection_id: case[0] for who, (_, case) in fates.items()}))

    posted = post(either, audience)

    outcomes = dict(posted.outcomes)
    found = {
        name: (outcomes[who], len(seen := either.posts_to(who.connection_id)), sum(p.act.taken for p in seen))
        for who, (name, _) in fates.items()
    }
    free = {name: case[1:] for name, case in CASES.items()}
    # A reset of a kept connection is met with one more post, at no charge.
    for name, (outcome, posts, taken) in free.items():
        more = "reset" in name and found[name][1] == posts + 1
        again = more and "after" in name and found[name][2] == taken + 1
        assert found[name] == (outcome, posts + more, taken + again), name
    charged = sum(posts for _, posts, _ in found.values()) - len(CASES)
    assert charged - sum("reset" in name for name in CASES) <= posted.retries <= charged


@pytest.mark.usefixtures("quick")
def test_everything_at_random_for_one_post_in_a_hundred(either: FaultProxy, rng: random.Random) -> None:
    audience = recipients(600)
    either.reset(Script(chance=0.01, seed=rng.getrandbits(32)))

    posted = post(either, audience)

    refused = {p.connection_id for p in either.posts if p.act in (FORBIDDEN, TOO_LARGE)}
    assert {who.connection_id for who, outcome in posted.outcomes if outcome != "delivered"} == refused


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [*FAULTS, "late"])
def test_fault_of_many_posts_leaves_the_others_alone(
    proxy: FaultProxy, rng: random.Random, fault: str
) -> None:
    # Fewer late ones: with half of the posts late, the endpoint may count as slow for everybody.
    audience = recipients(60 if fault == "late" else 24)
    bad = set(rng.sample(audience, 12))
    act = FAULTS.get(fault, LATE)
    proxy.reset(Script({who.connection_id: [act] for who in bad}))

    posted = post(proxy, audience)

    assert {who for who, outcome in posted.outcomes if outcome != "delivered"} == bad
    assert all(len(proxy.posts_to(who.connection_id)) == 1 for who in set(audience) - bad)


@pytest.mark.usefixtures("quick")
def test_endpoint_slow_for_everybody_in_ten_broadcasts_at_once_is_not_asked_again(
    proxy: FaultProxy, rng: random.Random
) -> None:
    """Ten batches to 100 connections each, through one endpoint that answers 320 posts in the time of a post.

    With 640 in flight, an answer takes up to twice the time after which a single slow post is repeated. The
    endpoint answers the first 640 in any order, so that no batch gets all of its answers before the others.
    """
    batches, size, in_flight = 10, 100, 64
    shortest = gateway.POST_TIMEOUT_SECONDS / 320
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
def test_client_whose_connection_always_resets_gets_few_copies(proxy: FaultProxy) -> None:
    """Each reset costs a kept connection, of which the healthy traffic provides many."""
    audience = recipients(200)
    poison = audience[100]
    proxy.reset(Script({poison.connection_id: [RESET_AFTER]}))

    posted = post(proxy, audience)

    assert posted.count("delivered") == len(audience) - 1
    assert proxy.taken[poison.connection_id] <= A + 1


@pytest.mark.usefixtures("quick")
def test_quota_that_is_crowded_for_longer_than_the_attempts_fails_nobody(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "THROTTLED_SECONDS", 10)
    free = time.monotonic() + 1
    proxy.reset(Script(decide=lambda seen: THROTTLED if time.monotonic() < free else None))

    posted = post(proxy, recipients(30))

    assert posted.count("delivered") == 30
    assert posted.throttled > 30 * A


# ---- deadlines


@pytest.mark.parametrize(
    "act", [THROTTLED, BROKEN, SILENT, RESET_BEFORE, late(60)], ids=["429", "500", "silence", "reset", "late"]
)
def test_deadline_ends_the_retries_and_what_is_left_is_reported(proxy: FaultProxy, act: Act) -> None:
    audience = recipients(40)
    bad = set(audience[::2])
    proxy.reset(Script({who.connection_id: [act] for who in bad}))
    started = time.monotonic()

    posted = post(proxy, audience, seconds=0.7, gateway=make_gateway(proxy.endpoint, concurrency=64))

    assert time.monotonic() - started < 1.2
    assert {who for who, outcome in posted.outcomes if outcome == "failed"} == bad
    assert max(seen.arrived for seen in proxy.posts) < started + 0.75
    before = len(proxy.posts)
    time.sleep(0.3)  # nothing must come after the call, so there is nothing to wait for
    assert len(proxy.posts) == before


def test_recipients_whose_turn_never_came_are_reported_too(proxy: FaultProxy) -> None:
    audience = recipients(50)
    proxy.reset(Script(otherwise=late(0.2)))

    posted = post(proxy, audience, seconds=0.5, gateway=make_gateway(proxy.endpoint, concurrency=4))

    assert 4 <= posted.count("delivered") <= 12
    assert posted.count("failed") == 50 - posted.count("delivered")


# ---- one that does not answer


def test_connection_that_never_answers_delays_no_other(
    proxy: FaultProxy, rng: random.Random, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    """The 99th percentile of the others' completion, measured at the proxy, over rounds taken in turns."""
    timeout = 0.8
    shorten_timeouts(monkeypatch, timeout)
    carrier = make_gateway(proxy.endpoint, concurrency=64)
    post(proxy, recipients(100), gateway=carrier)  # connections are opened

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

    without, beside = (median(times) for times in zip(*rounds, strict=True))
    assert beside < timeout, "the round must be over before the silent post gives its place back"
    name = f"p99 of 299 connections beside one that never answers, {without * 1000:.0f} ms without it"
    figure(name, beside, 1.5 * without)


# ---- connections that died, names and certificates


def test_sockets_that_died_between_two_calls_cost_neither_a_failure_nor_a_retry(either: FaultProxy) -> None:
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
def test_certificate_that_does_not_hold_gets_nothing_posted(
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


def test_certificate_put_right_within_the_batch_fails_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.pem", tmp_path / "bad.pem"
    certify(good)
    tls = certify(bad)
    monkeypatch.setenv("SSL_CERT_FILE", str(good))
    monkeypatch.setattr(gateway, "FIRST_BACKOFF_SECONDS", 0.3)
    with FaultProxy(tls=tls) as proxy:
        carrier = make_gateway(proxy.endpoint)
        wrap, handshakes = ssl.SSLContext.wrap_socket, itertools.count()

        def put_right(context: ssl.SSLContext, *arguments: Any, **options: Any) -> Any:
            if next(handshakes) == 10:
                tls.load_cert_chain(good)
            return wrap(context, *arguments, **options)

        monkeypatch.setattr(ssl.SSLContext, "wrap_socket", put_right)
        posted = post(proxy, recipients(10), gateway=carrier)

    assert posted.count("delivered") == 10
    assert posted.retries > 0


class Resolver:
    """`socket.getaddrinfo` that fails for a while."""

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


def test_name_that_does_not_resolve_fails_everybody_within_the_attempts(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(monkeypatch)
    carrier = make_gateway(f"http://api.example.invalid:{proxy.port}/live")
    started = time.monotonic()

    posted = post(proxy, recipients(30), gateway=carrier)

    assert posted.count("failed") == 30
    assert time.monotonic() - started < 10
    # The name server is asked now and then, not once a post.
    assert resolver.calls < 60


def test_name_that_resolves_again_loses_nobody(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    Resolver(monkeypatch, until=time.monotonic() + 0.2)
    # Long enough that no post uses up its attempts within the outage.
    monkeypatch.setattr("random.uniform", lambda low, high: high / 2)
    carrier = make_gateway(f"http://api.example.invalid:{proxy.port}/live")

    posted = post(proxy, recipients(30), gateway=carrier)

    assert posted.count("delivered") == 30


# ---- credentials


def test_credentials_rotated_within_a_batch_are_taken_up(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old ones are refused once a signature may have been made since, as when they expire."""
    monkeypatch.setattr(gateway, "SIGNATURE_SECONDS", 0.2)
    session = Session()
    rotated: list[float] = []

    def decide(seen: Post) -> Act | None:
        if seen.number == 60:
            session.access_key = "SECOND"
            rotated.append(time.monotonic())
        stale = "Credential=FIRST/" in seen.headers["authorization"]
        # 0.2 s until the next signature, and as much for requests under way.
        return FORBIDDEN if rotated and stale and time.monotonic() > rotated[0] + 0.4 else None

    proxy.reset(Script(decide=decide, otherwise=late(0.02)))

    posted = post(
        proxy, recipients(600), gateway=make_gateway(proxy.endpoint, concurrency=8, session=session)
    )

    assert posted.count("delivered") == 600
    assert "Credential=SECOND/" in proxy.posts[-1].headers["authorization"]
