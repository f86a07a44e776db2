"""Runs the `muster` command in its own process."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from tests.support import ROOT

SECONDS = 240
"""Longer than any command takes, `up` on a busy machine included."""


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment, without what points commands to other stacks, and with `changes`."""
    elsewhere = ("AWS_", "MUSTER_OUTPUTS", "MUSTER_STATE_DIR", "MUSTER_TOKEN")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(elsewhere)}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `muster` with these arguments, in its own process group."""
    return subprocess.Popen(
        [sys.executable, "-m", "muster", *arguments],
        env=_environment(environment),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a command; return its exit code, its output and its errors."""
    try:
        printed, said = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, printed, said


def muster(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run `muster` to its end."""
    return finish(start(*arguments, **environment))
