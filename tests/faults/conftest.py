"""Fixtures of the fault tests. All randomness follows one printed seed, MUSTER_FAULT_SEED."""

import random
from collections.abc import Generator, Iterator

import pytest

from functions.shared.posting import batch
from tests.support.functions import shorten_timeouts
from tests.support.gateways import close_gateways
from tests.support.proxy import FaultProxy
from tests.support.randomness import REPEAT, SEED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("seed", REPEAT))
    return report


@pytest.fixture(autouse=True)
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test. Backoffs follow the seed too."""
    random.seed(f"{SEED}/backoff/{request.node.nodeid}")
    return random.Random(f"{SEED}/{request.node.nodeid}")


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    yield
    close_gateways()


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """A proxy that simulates `@connections` over plain HTTP."""
    with FaultProxy() as proxy:
        yield proxy


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts and backoffs of a tenth: giving up takes seconds."""
    shorten_timeouts(monkeypatch, 0.4)
    monkeypatch.setattr(batch, "GONE_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(batch, "FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(batch, "LONGEST_BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(batch, "THROTTLED_SECONDS", 0.5)
