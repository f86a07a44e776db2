"""The demo's script, its comparisons, and how its command ends. tests/e2e runs the demo itself."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from muster.cli import demo as command
from muster.demo.report import Delivery, Limit, Missed, Report
from muster.demo.script import FEWEST_CLIENTS, choose_users, is_addressed, script
from muster.errors import DemoFailed, MusterError, StackError
from muster.listeners import Timing
from muster.local.seed import USERS, User
from muster.local.stack import Status

TIMING = Timing(1.0, 2.0, 3.0)


def report(*problems: str) -> Report:
    return Report(
        clients=50,
        users=40,
        handshake=TIMING,
        deliveries=[Delivery("execution", "shelter_update", "overlapping", 50, 50, TIMING, {})],
        missed=Missed("resident-jon", "an-id", {"message": {"id": "an-id"}, "reason": "gone"}, True, 12.0),
        table_operations={"put": TIMING},
        limits=[Limit("handshake", 3.0, 2.0)],
        problems=problems,
    )


@pytest.mark.parametrize("clients", [FEWEST_CLIENTS, 13, 50, 300])
def test_a_fifth_of_the_clients_are_second_ones_of_their_users(clients: int) -> None:
    users = choose_users(clients)
    counts = [users.count(user) for user in set(users)]
    assert len(users) == clients
    assert counts.count(2) == clients // 5
    assert max(counts) == 2
    assert users.count(users[-1]) == 1


def test_the_users_have_every_role_and_shelter_and_are_active() -> None:
    assert {user.role for user in choose_users(FEWEST_CLIENTS)} == {user.role for user in USERS}
    assert {user.shelter_id for user in choose_users(50)} == {user.shelter_id for user in USERS}
    assert all(user.active for user in choose_users(300))
    assert len({user.user_id for user in choose_users(300)}) == 240


@pytest.mark.parametrize("clients", [FEWEST_CLIENTS, 50])
def test_the_script_has_each_scope_by_execution_and_each_type_by_a_client(clients: int) -> None:
    users = choose_users(clients)
    steps = script(users)
    scopes = {step.scope for step in steps if step.via == "execution"}
    assert scopes == {"all, cold", "all", "role", "user", "shelter", "overlapping"}
    assert {step.type for step in steps if step.via == "client"} == {"alert", "broadcast", "shelter_update"}
    for step in steps:
        assert any(is_addressed(user, step.target) for user in users)
        assert step.sender is None or step.sender in {user.user_id for user in users}


def test_a_target_includes_every_user_whom_one_of_its_scopes_names() -> None:
    user = User("ann", "resident", "north")
    homeless = User("bob", "resident")
    for target in ({"all": True}, {"roles": ["resident"]}, {"users": ["ann"]}, {"shelters": ["north"]}):
        assert is_addressed(user, target)
    assert is_addressed(user, {"roles": ["admin"], "users": ["bob"], "shelters": ["north"]})
    assert not is_addressed(user, {"roles": ["admin"], "users": ["bob"], "shelters": ["south"]})
    assert not is_addressed(homeless, {"shelters": ["north"]})


class FakeStack:
    """Notes whether it was taken down; `during_down` runs while it is."""

    made: "FakeStack"
    during_up: Callable[[], None] = staticmethod(lambda: None)
    during_down: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, state_dir: Path, **_options: Any) -> None:
        FakeStack.made = self
        self.state_dir = state_dir
        self.phase: Any = "down"
        self.finished_down = False

    @property
    def log_file(self) -> Path:
        return self.state_dir / "emulator.log"

    def up(self) -> str:
        FakeStack.during_up()
        self.phase = "ready"
        return "outputs"

    def status(self) -> Status:
        return Status(self.phase)

    def down(self) -> bool:
        FakeStack.during_down()
        self.state_dir.rmdir()
        self.finished_down = True
        return True


@pytest.fixture(autouse=True)
def _fake_stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(command, "Stack", FakeStack)


def play(monkeypatch: pytest.MonkeyPatch, outcome: Report | MusterError | None, *arguments: str) -> Result:
    """Run the command with a demo that ends in `outcome`; None waits to be interrupted."""

    async def run(outputs: object, clients: int, progress: object) -> Report:
        assert outputs == "outputs"
        if isinstance(outcome, MusterError):
            raise outcome
        if outcome is None:
            interrupt()
            await asyncio.wait_for(asyncio.Event().wait(), timeout=10)
            raise AssertionError
        return outcome

    monkeypatch.setattr(command, "run", run)
    return CliRunner().invoke(command.app, list(arguments))


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fail() -> None:
    raise StackError("Port 1 is taken.")


def test_success_prints_the_figures_within_80_columns_and_stops_the_stack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = play(monkeypatch, report())
    assert result.exit_code == 0
    assert "overlapping" in result.stdout
    assert "shelter_update" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if "{" not in line) <= 80
    assert FakeStack.made.finished_down


def test_json_is_one_object_with_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = json.loads(play(monkeypatch, report(), "--json").stdout)
    assert printed["passed"] is True
    assert printed["deliveries"][0]["timing"]["p99_ms"] == 2.0


def test_problems_become_an_error_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    result = play(monkeypatch, report("alert to all: nothing arrived at ann"))
    assert isinstance(result.exception, DemoFailed)
    assert "nothing arrived at ann" in str(result.exception)
    assert FakeStack.made.finished_down


def test_a_demo_that_fails_stops_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    result = play(monkeypatch, MusterError("No."))
    assert str(result.exception) == "No."
    assert FakeStack.made.finished_down


def test_an_interrupt_stops_the_stack_and_a_second_one_does_not_prevent_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(FakeStack, "during_down", staticmethod(interrupt))
    result = play(monkeypatch, None)
    assert result.exit_code == 130
    assert FakeStack.made.finished_down
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_after_the_demo_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeStack, "during_down", staticmethod(interrupt))
    assert play(monkeypatch, report()).exit_code == 0
    assert FakeStack.made.finished_down


def test_an_interrupt_while_the_stack_starts_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeStack, "during_up", staticmethod(interrupt))
    result = play(monkeypatch, report())
    assert result.exit_code == 130
    assert not FakeStack.made.state_dir.exists()


def test_keep_leaves_the_stack_running_and_prints_how_to_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    result = play(monkeypatch, report(), "--keep")
    assert not FakeStack.made.finished_down
    assert f"muster down --state-dir {FakeStack.made.state_dir}" in result.output.replace("\n", "")


@pytest.mark.parametrize("options", [(), ("--keep",)])
def test_a_demo_that_cannot_start_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(FakeStack, "during_up", staticmethod(fail))
    result = play(monkeypatch, report(), *options)
    assert isinstance(result.exception, StackError)
    assert not FakeStack.made.state_dir.exists()


def test_a_log_that_the_error_names_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_with_a_log() -> None:
        raise StackError("The emulator ended.", fix=f"See {FakeStack.made.log_file}")

    monkeypatch.setattr(FakeStack, "during_up", staticmethod(fail_with_a_log))
    assert isinstance(play(monkeypatch, report()).exception, StackError)
    assert FakeStack.made.state_dir.exists()


def test_fewer_clients_than_the_script_needs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert play(monkeypatch, report(), "--clients", str(FEWEST_CLIENTS - 1)).exit_code == 2
