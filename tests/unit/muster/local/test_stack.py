"""The local stack: up, up again, down, and everything that can interrupt them.

Terraform and the emulator's program are stand-ins here; the integration tests run the real ones.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from muster.cli.options import resolve_outputs
from muster.errors import MusterError, OutputsError, StackError, TerraformError, TerraformStalled
from muster.local import bundle, emulator, repository, stack, terraform
from muster.local.emulator import Process
from muster.local.stack import Stack
from muster.outputs import Outputs
from tests.support.fake_terraform import FakeTerraform, change, failure, planned
from tests.unit.muster.test_outputs import NESTED

ENDPOINT = "http://127.0.0.1:4566"


class Emulators:
    """A fake emulator: a process that only sleeps, and the health that the test chooses."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []
        self.answers = True

    def start(
        self,
        port: int,
        *,
        log: Path,
        folder: Path,
        record: Callable[[Process], object],
        settings: Mapping[str, str],
    ) -> Process:
        folder.mkdir()
        log.write_text("the emulator's log")
        program = [sys.executable, "-c", "import time; time.sleep(60)"]
        self.children.append(subprocess.Popen(program, start_new_session=True))
        process = Process.of(self.children[-1].pid)
        assert process is not None
        record(process)
        return process

    def healthy(self, endpoint_url: str) -> bool:
        return self.answers

    @property
    def running(self) -> int:
        return sum(child.poll() is None for child in self.children)


@pytest.fixture
def emulators(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulators]:
    stand_in = Emulators()
    monkeypatch.setattr(emulator, "start", stand_in.start)
    monkeypatch.setattr(emulator, "healthy", stand_in.healthy)
    monkeypatch.setattr(emulator, "require_free", lambda port: None)
    yield stand_in
    for child in stand_in.children:
        child.kill()
        child.wait()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    for name in ("terraform/main.tf", "terraform/modules/function/main.tf", "statemachines/fanout.asl.json"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(repository, "checkout", lambda: root)
    return root


@pytest.fixture
def fake(
    tmp_path: Path, checkout: Path, emulators: Emulators, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> FakeTerraform:
    program = FakeTerraform(tmp_path / "bin")
    program.says("apply", creates=state_dir / "terraform.tfstate")
    program.says("output", lines=[json.dumps(NESTED)])
    monkeypatch.setenv("PATH", program.path())
    monkeypatch.setattr(terraform, "provider_environment", lambda *_arguments: {})
    monkeypatch.setattr(bundle, "build_local", lambda out: None)
    monkeypatch.setattr(stack, "seed", lambda outputs: None)
    return program


def record(state_dir: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((state_dir / "stack.json").read_text())
    return document


class TestUp:
    def test_up_applies_and_is_recorded_for_other_processes(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        outputs = Stack(state_dir, port=4611).up()
        assert outputs == Outputs.parse(NESTED, source="test", endpoint_url="http://127.0.0.1:4611")
        status = Stack(state_dir).status()
        assert (status.phase, status.endpoint_url) == ("ready", "http://127.0.0.1:4611")
        assert status.outputs == outputs
        assert status.process is not None
        assert status.process.pid == emulators.children[0].pid

    def test_up_twice_applies_again_to_the_same_emulator(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        Stack(state_dir).up()
        Stack(state_dir).up()
        assert len(emulators.children) == 1
        assert len(fake.calls("apply")) == 2

    def test_ready_requires_the_same_variables(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        assert Stack(state_dir).ready() is None
        outputs = Stack(state_dir, variables={"page_size": 7}).up()
        assert Stack(state_dir).ready() is None, "a removed variable is not applied any more"
        assert Stack(state_dir, variables={"page_size": 7}).ready() == outputs
        assert Stack(state_dir, variables={"page_size": 8}).ready() is None

    def test_a_stack_that_is_up_is_not_moved_to_another_port(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        Stack(state_dir, port=4611).up()
        with pytest.raises(StackError, match=r"is up on http://127\.0\.0\.1:4611") as caught:
            Stack(state_dir, port=4612).up()
        assert "muster down" in str(caught.value.fix)

    def test_a_failed_apply_stops_the_emulator_and_keeps_its_log(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        fake.says("apply", exit_code=1, lines=[failure("creating SQS Queue")])
        with pytest.raises(TerraformError, match="creating SQS Queue"):
            Stack(state_dir).up()
        assert emulators.running == 0
        assert Stack(state_dir).status().phase == "down"
        assert Stack(state_dir).log_file.exists()

    def test_a_stalled_apply_starts_again_once_on_a_new_emulator(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stack, "_STALL_SECONDS", 0.5)
        start = emulators.start

        def mended_at_the_second(port: int, **options: Any) -> Process:
            if emulators.children:
                fake.says("apply", creates=state_dir / "terraform.tfstate")
            return start(port, **options)

        monkeypatch.setattr(emulator, "start", mended_at_the_second)
        fake.says("apply", lines=[planned(add=1)], seconds=60)
        Stack(state_dir).up()
        assert (len(emulators.children), emulators.running) == (2, 1)
        assert Stack(state_dir).status().phase == "ready"

    def test_a_second_stall_ends_with_a_fix_and_no_emulator(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stack, "_STALL_SECONDS", 0.5)
        fake.says("apply", lines=[planned(add=1)], seconds=60)
        with pytest.raises(TerraformStalled, match="second attempt") as caught:
            Stack(state_dir).up()
        assert "Run `muster up` again" in str(caught.value.fix)
        assert (len(emulators.children), emulators.running) == (2, 0)

    def test_an_interrupt_stops_the_emulator_and_the_next_up_works(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        class Interrupting:
            def step(self, text: str) -> None:
                pass

            def detail(self, text: str) -> None:
                os.kill(os.getpid(), signal.SIGINT)

        fake.says("apply", lines=[planned(add=1), change("apply_start", "aws_sqs_queue.offline")], seconds=60)
        with pytest.raises(KeyboardInterrupt):
            Stack(state_dir, progress=Interrupting()).up()
        assert fake.was_interrupted
        assert emulators.running == 0

        fake.says("apply", creates=state_dir / "terraform.tfstate")
        Stack(state_dir).up()
        assert emulators.running == 1

    def test_an_emulator_is_recorded_before_it_runs(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start = emulators.start

        def interrupted(port: int, **options: Any) -> Process:
            start(port, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(emulator, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Stack(state_dir).up()
        assert len(emulators.children) == 1
        assert emulators.running == 0

    def test_a_failed_change_leaves_the_running_stack_running(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        Stack(state_dir).up()
        fake.says("apply", exit_code=1, lines=[failure("Invalid expression")])
        with pytest.raises(TerraformError):
            Stack(state_dir).up()
        assert emulators.running == 1
        assert Stack(state_dir).status().phase == "ready"

    def test_up_replaces_a_stack_that_a_killed_up_left(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        Stack(state_dir).up()
        halfway = record(state_dir) | {"phase": "starting", "outputs": None}
        (state_dir / "stack.json").write_text(json.dumps(halfway))
        Stack(state_dir).up()
        assert len(emulators.children) == 2
        assert emulators.running == 1

    def test_two_at_the_same_time_are_refused(self, fake: FakeTerraform, state_dir: Path) -> None:
        first, second = Stack(state_dir), Stack(state_dir)
        with first._locked(), pytest.raises(StackError, match="Another process"):
            second.up()

    def test_an_up_that_fails_before_anything_started_leaves_no_folder(
        self, fake: FakeTerraform, state_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def taken(port: int) -> None:
            raise StackError("Port taken")

        monkeypatch.setattr("muster.local.emulator.require_free", taken)
        with pytest.raises(StackError, match="Port taken"):
            Stack(state_dir, port=4599).up()
        assert not state_dir.exists()

    def test_a_folder_with_other_files_is_left_unchanged(self, fake: FakeTerraform, state_dir: Path) -> None:
        (state_dir / "source").mkdir(parents=True)
        for call in (Stack(state_dir).up, Stack(state_dir).down):
            with pytest.raises(StackError, match="is not empty"):
                call()
        assert (state_dir / "source").exists()


class TestUpgrade:
    """A stack that another version of Muster started, with other outputs and another record."""

    @pytest.fixture
    def older(self, fake: FakeTerraform, emulators: Emulators, state_dir: Path) -> None:
        Stack(state_dir).up()
        document = record(state_dir)
        del document["outputs"]["messages_table"]
        document["process"]["name"] = "ministack"
        (state_dir / "stack.json").write_text(json.dumps(document | {"version": "0.3.0"}))

    @pytest.mark.usefixtures("older")
    def test_status_reports_that_it_runs(self, emulators: Emulators, state_dir: Path) -> None:
        status = Stack(state_dir).status()
        assert (status.phase, status.outputs) == ("ready", None)
        assert status.process is not None
        assert status.process.pid == emulators.children[0].pid

    @pytest.mark.usefixtures("older")
    def test_down_stops_it(self, fake: FakeTerraform, emulators: Emulators, state_dir: Path) -> None:
        assert Stack(state_dir).down() is True
        assert len(fake.calls("destroy")) == 1
        assert emulators.running == 0
        assert not state_dir.exists()

    @pytest.mark.usefixtures("older")
    def test_up_updates_it(self, emulators: Emulators, state_dir: Path) -> None:
        outputs = Stack(state_dir).up()
        assert Stack(state_dir).status().outputs == outputs
        assert len(emulators.children) == 1

    @pytest.mark.usefixtures("older")
    def test_commands_that_need_its_outputs_say_what_to_do(self, state_dir: Path) -> None:
        with pytest.raises(OutputsError, match="another version") as caught:
            resolve_outputs(None, state_dir)
        assert "muster up" in str(caught.value.fix)

    def test_a_record_without_outputs_is_accepted(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        Stack(state_dir).up()
        document = record(state_dir)
        del document["outputs"]
        (state_dir / "stack.json").write_text(json.dumps(document))
        assert Stack(state_dir).down() is True
        assert emulators.running == 0


class TestSafety:
    def test_a_recycled_process_id_means_down_and_is_not_signalled(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        Stack(state_dir).up()
        process = record(state_dir)["process"] | {"started": "before the reboot"}
        (state_dir / "stack.json").write_text(json.dumps(record(state_dir) | {"process": process}))
        assert Stack(state_dir).status().phase == "down"
        assert Stack(state_dir).down() is False
        assert emulators.running == 1

    def test_terraform_gets_no_aws_setting_of_the_users(
        self, fake: FakeTerraform, state_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = (
            "AWS_PROFILE",
            "AWS_SESSION_TOKEN",
            "AWS_ENDPOINT_URL_S3",
            "TF_VAR_roles",
            "TF_CLI_ARGS_apply",
        )
        for name in (*names, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "TF_WORKSPACE"):
            monkeypatch.setenv(name, "the user's")
        Stack(state_dir).up()
        Stack(state_dir).down()
        for command in ("init", "apply", "output", "destroy"):
            (call,) = fake.calls(command)
            assert "the user's" not in call["environment"].values()
            assert call["environment"]["AWS_ENDPOINT_URL"] == ENDPOINT
            assert call["environment"]["AWS_ACCESS_KEY_ID"] == "test"

    def test_terraform_works_on_a_copy_without_what_the_user_keeps_for_aws(
        self, fake: FakeTerraform, checkout: Path, state_dir: Path
    ) -> None:
        for name in ("terraform.tfvars", "terraform.tfstate", ".terraform.lock.hcl", "backend_override.tf"):
            (checkout / "terraform" / name).write_text("the user's")
        Stack(state_dir).up()
        module = state_dir / "source" / "terraform"
        (call,) = fake.calls("apply")
        assert f"-chdir={module}" in call["arguments"]
        copied = {path.relative_to(module).as_posix() for path in module.rglob("*") if path.is_file()}
        assert copied == {"main.tf", "modules/function/main.tf", "backend_override.tf.json"}
        assert (state_dir / "source" / "statemachines" / "fanout.asl.json").exists()

    def test_variables_fit_one_machine_and_callers_override_them(
        self, fake: FakeTerraform, state_dir: Path
    ) -> None:
        Stack(state_dir, variables={"page_size": 7, "batch_concurrency": 1}).up()
        variables = json.loads((state_dir / "variables.tfvars.json").read_text())
        assert variables["execute_api_url"] == f"{ENDPOINT}/_aws/execute-api/{{api_id}}"
        assert variables["bundle_dir"] == str(state_dir / "bundle")
        assert variables["deletion_protection"] is False
        assert (variables["partition_concurrency"], variables["batch_concurrency"]) == (2, 1)
        assert variables["page_size"] == 7


class TestDown:
    def test_down_destroys_stops_and_leaves_nothing(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        Stack(state_dir).up()
        assert Stack(state_dir).down() is True
        assert len(fake.calls("destroy")) == 1
        assert emulators.running == 0
        assert not state_dir.exists()

    def test_down_stops_the_emulator_even_if_terraform_cannot_destroy(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        Stack(state_dir).up()
        fake.says("destroy", exit_code=1, lines=[failure("deleting SNS Topic")])
        assert Stack(state_dir).down() is True
        assert emulators.running == 0
        assert not state_dir.exists()

    def test_down_without_a_stack_says_so(self, state_dir: Path) -> None:
        assert Stack(state_dir).down() is False

    def test_down_after_the_emulator_died_cleans_up(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        Stack(state_dir).up()
        emulators.children[0].kill()
        emulators.children[0].wait()
        assert Stack(state_dir).down() is False
        assert not state_dir.exists()

    @pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"process": 1}'])
    def test_a_damaged_record_is_an_error_that_names_it(self, state_dir: Path, text: str) -> None:
        state_dir.mkdir()
        (state_dir / "stack.json").write_text(text)
        with pytest.raises(MusterError, match=r"stack\.json is damaged"):
            Stack(state_dir).status()


class TestAttached:
    """With an external emulator, which Muster neither starts nor stops."""

    def test_nothing_is_started_or_stopped(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        outputs = Stack(state_dir, endpoint=f"{ENDPOINT}/").up()
        assert outputs.endpoint_url == ENDPOINT
        assert Stack(state_dir).down() is True
        assert emulators.children == []
        assert len(fake.calls("destroy")) == 1
        assert not state_dir.exists()

    def test_an_endpoint_that_does_not_answer_is_named(
        self, fake: FakeTerraform, emulators: Emulators, state_dir: Path
    ) -> None:
        emulators.answers = False
        with pytest.raises(StackError, match=f"No emulator answers at {ENDPOINT}"):
            Stack(state_dir, endpoint=ENDPOINT).up()

    def test_a_failed_apply_keeps_the_state_so_that_down_can_destroy_it(
        self, fake: FakeTerraform, state_dir: Path
    ) -> None:
        fake.says("apply", exit_code=1, lines=[failure("throttled")], creates=state_dir / "terraform.tfstate")
        with pytest.raises(TerraformError):
            Stack(state_dir, endpoint=ENDPOINT).up()
        assert Stack(state_dir).down() is True
        assert len(fake.calls("destroy")) == 1

    def test_a_failed_destroy_keeps_the_state_so_that_it_can_be_repeated(
        self, fake: FakeTerraform, state_dir: Path
    ) -> None:
        Stack(state_dir, endpoint=ENDPOINT).up()
        fake.says("destroy", exit_code=1, lines=[failure("throttled")])
        with pytest.raises(TerraformError):
            Stack(state_dir).down()
        fake.says("destroy")
        assert Stack(state_dir).down() is True
