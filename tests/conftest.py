"""Starts the stack under test once per run, and prints what the tests measured."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

# Powertools reads these when the first test module imports a function.
os.environ.setdefault("POWERTOOLS_SERVICE_NAME", "muster")
os.environ.setdefault("POWERTOOLS_METRICS_NAMESPACE", "Muster")

from muster import Stack
from muster.local.seed import User
from tests.support import ROOT
from tests.support.deployment import VARIABLES, Deployment, unique
from tests.support.endpoint import EMBEDDED_ONLY, endpoint
from tests.support.fixtures import Connect, Figure
from tests.support.randomness import REPEAT
from tests.support.variants import Variants

# A shell makes its background processes, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The stack under test: a new emulator, or the endpoint that the environment names.

    AWS_ENDPOINT_URL or LOCALSTACK_HOST names it, as for localstack-client. There every resource gets a unique
    name, and is destroyed at the end.
    """
    # Not pytest's temporary directory, which another run on this machine may clear while this one cleans up.
    with TemporaryDirectory(prefix="muster-tests-") as folder:
        state_dir = Path(folder) / "stack"
        if named := endpoint():
            variables = VARIABLES | {"name_prefix": unique("muster")}
            stack = Stack(state_dir, endpoint=named, variables=variables)
        else:
            stack = Stack(state_dir, port=0, variables=VARIABLES)
        try:
            stack.up()
            yield stack
        finally:
            stack.down()


@pytest.fixture(scope="session")
def deployment(stack: Stack) -> Deployment:
    """The stack under test, as tests use it."""
    outputs = stack.status().outputs
    assert outputs is not None
    return Deployment(outputs)


@pytest.fixture(scope="session")
def variants(stack: Stack, deployment: Deployment) -> Iterator[Variants]:
    """Makes changed copies of deployed functions and machines; they are deleted at the end of the run."""
    variants = Variants(deployment, stack.state_dir / "bundle" / "functions.zip")
    yield variants
    variants.remove()


@pytest.fixture
def connect(deployment: Deployment) -> Iterator[Connect]:
    """`Deployment.put_connection`; the rows are deleted after the test."""
    made: list[str] = []

    def put(user: User, **options: Any) -> str:
        made.append(deployment.put_connection(user, **options))
        return made[-1]

    yield put
    deployment.forget_connections(made)


@pytest.fixture
def shelter() -> str:
    """A shelter id that no other test uses."""
    return unique("shelter")


@pytest.fixture
def measured(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count what the test's subprocesses execute, if coverage is measured.

    Not for tests that start the emulator, which would be slower.
    """
    if pytestconfig.pluginmanager.hasplugin("_cov"):
        monkeypatch.setenv("COVERAGE_PROCESS_START", str(ROOT / "pyproject.toml"))
        monkeypatch.setenv("COVERAGE_FILE", str(ROOT / ".coverage"))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Print a measured time at the end of the run, and fail the test if it exceeds the limit."""

    def report(name: str, seconds: float, limit: float) -> None:
        measured = f"{name}: {seconds * 1000:.0f} ms (limit {limit * 1000:.0f} ms)"
        request.node.user_properties.append(("figure", measured))
        assert seconds < limit, measured

    return report


def pytest_configure() -> None:
    """Handle SIGTERM, with which CI systems end a run, like Ctrl-C: fixtures clean up."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the stack, and skip those that the endpoint cannot serve."""
    named = endpoint()
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.stack)
        reason = EMBEDDED_ONLY.get(item.nodeid.partition("::")[0])
        if named and reason:
            item.add_marker(pytest.mark.skip(reason=f"needs the embedded AWS: {reason}"))


def pytest_report_header() -> list[str]:
    """Print the seed at the start, in case the run does not end, and what the endpoint cannot serve."""
    if named := endpoint():
        skipped = [f"  {path}: {reason}" for path, reason in EMBEDDED_ONLY.items()]
        return [
            REPEAT,
            f"endpoint: {named}",
            "skipped, because only the embedded AWS can serve it:",
            *skipped,
        ]
    return [REPEAT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures and the seed."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    figures = [line for report in reports for name, line in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)
    terminalreporter.write_line(REPEAT)
