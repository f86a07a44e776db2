"""A test run against an endpoint from the environment lists at its start which tests it skips."""

import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT
from tests.support.endpoint import EMBEDDED_ONLY

STARTS_AN_EMULATOR = re.compile(
    r"emulator\.start\(|Stack\([^)]*port=0|\"--port\", \"0\"|FaultProxy\(upstream="
)


def _run(*arguments: str, **environment: str) -> str:
    """Return what pytest prints in a new process, with only the given endpoint."""
    names = ("AWS_ENDPOINT_URL", "LOCALSTACK_HOST", "PYTEST_", "MUSTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "LOCALSTACK_HOST"])
def test_header_names_what_is_skipped(name: str) -> None:
    value = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "LOCALSTACK_HOST": "127.0.0.1:9"}[name]
    header, _, rest = _run("tests/integration/test_stall.py", **{name: value}).partition("collected ")
    assert "endpoint: http://127.0.0.1:9" in header
    for path, reason in EMBEDDED_ONLY.items():
        assert f"{path}: {reason}" in header
    assert re.search(r"\b\d+ skipped", rest)
    assert "passed" not in rest


def test_without_an_endpoint_nothing_is_skipped() -> None:
    printed = _run("--collect-only", "tests/integration/test_stall.py")
    assert "skipped, because" not in printed


def test_every_file_that_starts_an_emulator_is_listed() -> None:
    files = (
        path
        for folder in ("e2e", "faults", "integration")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
    )
    starting = {
        path.relative_to(ROOT).as_posix() for path in files if STARTS_AN_EMULATOR.search(path.read_text())
    }
    assert starting == set(EMBEDDED_ONLY)
