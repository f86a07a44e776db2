"""`muster up`, `down` and `demo` as processes: what they print when interrupted, and what they leave.

Bringing a stack up takes about a minute, so one story is played once and each test looks at its part of it.
"""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from muster import Stack
from tests.support.commands import SECONDS, finish, muster, start
from tests.support.deployment import Deployment
from tests.support.waiting import until

pytestmark = pytest.mark.stack

INTERRUPTED = 128 + signal.SIGINT


@dataclass
class Told:
    """How a command ended: its exit code, what it printed and said, and the processes it left behind."""

    code: int
    printed: str
    said: str
    left: list[str] = field(default_factory=list)


@dataclass
class Story:
    """What the commands told, in the order in which they ran; the demo ran beside them."""

    state_dir: Path
    port_taken: Told
    beside_another: Told
    interrupted: Told
    up: Told
    up_again: Told
    status: Told
    down: Told
    demo: Told
    demo_folder: Path


def _processes(folder: Path) -> list[str]:
    """Return the processes that work for a stack in the folder: their command or environment names it."""
    listed = subprocess.run(
        ["ps", "axeww", "-o", "pid=,command="], capture_output=True, text=True, check=True
    )
    return [line for line in listed.stdout.splitlines() if str(folder) in line]


def _told(ended: tuple[int, str, str], folder: Path) -> Told:
    return Told(*ended, left=_processes(folder))


def _up_on_a_taken_port(folder: Path) -> Told:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        return _told(muster("up", "--port", port, MUSTER_STATE_DIR=str(folder)), folder)


def _interrupted_up(folder: Path) -> tuple[Told, Told]:
    """Interrupt `up` when Terraform has made its first table.

    Return what another `up` told just before, and what the interrupted one did.
    """
    process = start("up", "--port", "0", MUSTER_STATE_DIR=str(folder))
    state = folder / "terraform.tfstate"
    until(lambda: state.exists() and "aws_dynamodb_table" in state.read_text(), "the first table", 60)
    beside = _told(muster("up", MUSTER_STATE_DIR=str(folder)), folder)
    os.killpg(process.pid, signal.SIGINT)
    return beside, _told(finish(process), folder)


def _has_clients(folder: Path) -> bool:
    """Tell whether the demo that runs in the folder has clients connected."""
    for state_dir in folder.glob("muster-demo-*"):
        if outputs := Stack(state_dir).status().outputs:
            table = Deployment(outputs).tables.Table(outputs.connections_table)
            return bool(table.scan(Limit=1)["Items"])
    return False


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    state_dir, demo_folder = (tmp_path_factory.mktemp(name) for name in ("state", "demo"))
    state_dir.rmdir()
    demo = start("demo", TMPDIR=str(demo_folder))
    try:
        port_taken = _up_on_a_taken_port(state_dir)
        beside_another, interrupted = _interrupted_up(state_dir)
        first = start("up", "--port", "0", "--json", MUSTER_STATE_DIR=str(state_dir))
        until(lambda: demo.poll() is not None or _has_clients(demo_folder), "the demo's clients", SECONDS)
        os.killpg(demo.pid, signal.SIGINT)
        demo_told = _told(finish(demo), demo_folder)
        up = _told(finish(first), state_dir)
        up_again = _told(muster("up", "--port", "0", "--json", MUSTER_STATE_DIR=str(state_dir)), state_dir)
        status = _told(muster("status", "--json", MUSTER_STATE_DIR=str(state_dir)), state_dir)
        down = _told(muster("down", MUSTER_STATE_DIR=str(state_dir)), state_dir)
        yield Story(
            state_dir,
            port_taken,
            beside_another,
            interrupted,
            up,
            up_again,
            status,
            down,
            demo_told,
            demo_folder,
        )
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGINT)
            finish(demo)
        muster("down", MUSTER_STATE_DIR=str(state_dir))


def _outputs(told: Told) -> dict[str, Any]:
    outputs: dict[str, Any] = json.loads(told.printed)
    return outputs


def test_port_in_use_is_an_error_with_a_fix(story: Story) -> None:
    assert story.port_taken.code == 1
    assert "is taken by another program" in story.port_taken.said
    assert "--port 0" in story.port_taken.said
    assert story.port_taken.left == []


def test_second_up_beside_the_first_waits_its_turn(story: Story) -> None:
    assert story.beside_another.code == 1
    assert "Another process is starting or stopping this stack." in story.beside_another.said


def test_interrupted_up_stops_what_it_started(story: Story) -> None:
    assert story.interrupted.code == INTERRUPTED
    assert "Stopping the emulator" in story.interrupted.said
    assert "Traceback" not in story.interrupted.said
    assert story.interrupted.left == []


def test_next_up_works(story: Story) -> None:
    assert story.up.code == 0, story.up.said
    assert _outputs(story.up)["websocket_url"].startswith("ws://127.0.0.1:")
    assert story.up.left != []


def test_up_again_says_that_it_is_up_and_changes_nothing(story: Story) -> None:
    assert story.up_again.code == 0, story.up_again.said
    assert "The local stack is up on" in story.up_again.said
    assert _outputs(story.up_again) == _outputs(story.up)


def test_status_shows_what_runs(story: Story) -> None:
    assert story.status.code == 0
    told = _outputs(story.status)
    assert (told["phase"], told["outputs"]) == ("ready", _outputs(story.up))
    assert any(line.split()[0] == str(told["pid"]) for line in story.status.left)


def test_down_leaves_nothing(story: Story) -> None:
    assert story.down.code == 0, story.down.said
    assert story.down.left == []
    assert not story.state_dir.exists()


def test_interrupted_demo_leaves_nothing(story: Story) -> None:
    assert story.demo.code == INTERRUPTED, story.demo.said
    assert "Traceback" not in story.demo.said
    assert story.demo.left == []
    assert list(story.demo_folder.glob("muster-demo-*")) == []
