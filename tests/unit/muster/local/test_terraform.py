"""Terraform: how it is found, what a run reports, and how a run ends."""

import os
import sys
import time
from pathlib import Path

import pytest

from muster.errors import TerraformError, TerraformStalled
from muster.local import repository, terraform
from muster.local.terraform import PlannedChange, Terraform
from tests.support.fake_terraform import PLATFORM, FakeTerraform, change, failure, planned


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTerraform:
    program = FakeTerraform(tmp_path / "bin")
    monkeypatch.setenv("PATH", program.path())
    return program


class Recorder:
    def __init__(self) -> None:
        self.details: list[str] = []

    def step(self, text: str) -> None:
        pass

    def detail(self, text: str) -> None:
        self.details.append(text)


class TestBinary:
    def test_missing_terraform_is_one_clear_sentence_with_the_fix(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(
            TerraformError, match=r"^Terraform is not installed, or not on the PATH\.\n"
        ) as caught:
            terraform.find_binary()
        assert "https://developer.hashicorp.com/terraform/install" in str(caught.value.fix)

    @pytest.mark.parametrize("version", ["1.10.5", "0.15.0"])
    def test_too_old_terraform_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
    ) -> None:
        monkeypatch.setenv("PATH", FakeTerraform(tmp_path / "old", version).path())
        with pytest.raises(TerraformError, match=f"Terraform {version} is too old"):
            terraform.find_binary()

    @pytest.mark.parametrize("version", ["1.11.0", "1.12.0-beta1", "2.0.0"])
    def test_new_enough_terraform_is_accepted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
    ) -> None:
        monkeypatch.setenv("PATH", FakeTerraform(tmp_path / "new", version).path())
        assert terraform.find_binary().platform == PLATFORM


class TestRuns:
    def run(self, tmp_path: Path, progress: Recorder | None = None, **environment: str) -> Terraform:
        return Terraform(tmp_path, environment={**os.environ, **environment}, progress=progress)

    def test_progress_counts_changes_and_not_data_sources(self, fake: FakeTerraform, tmp_path: Path) -> None:
        fake.says(
            "apply",
            lines=[
                planned(add=1, change=1),
                change("apply_start", "data.aws_region.current", "read"),
                change("apply_complete", "data.aws_region.current", "read"),
                change("apply_start", "aws_sqs_queue.offline"),
                change("apply_progress", "aws_sqs_queue.offline", elapsed_seconds=10),
                change("apply_complete", "aws_sqs_queue.offline"),
                change("apply_complete", "aws_sns_topic.offline", "update"),
            ],
        )
        recorder = Recorder()
        self.run(tmp_path, recorder).apply()
        assert recorder.details == [
            "0/2 aws_sqs_queue.offline",
            "0/2 aws_sqs_queue.offline, 10 s",
            "1/2 aws_sqs_queue.offline",
            "2/2 aws_sns_topic.offline",
        ]

    def test_an_error_names_every_fault_with_its_file_and_line(
        self, fake: FakeTerraform, tmp_path: Path
    ) -> None:
        fake.says(
            "apply",
            exit_code=1,
            lines=[
                failure("Invalid value", "Use\n  another.", ("variables.tf", 7)),
                failure("creating SQS Queue: no host"),
            ],
        )
        with pytest.raises(TerraformError) as caught:
            self.run(tmp_path).apply()
        assert str(caught.value) == (
            "terraform apply failed: variables.tf:7: Invalid value. Use another.; creating SQS Queue: no host"
        )

    def test_a_failure_without_json_reports_the_plain_text(self, fake: FakeTerraform, tmp_path: Path) -> None:
        fake.says("init", exit_code=1, lines=["Error: Too many command line arguments"])
        with pytest.raises(TerraformError, match="Too many command line arguments"):
            self.run(tmp_path).init()

    def test_plan_returns_what_would_change(self, fake: FakeTerraform, tmp_path: Path) -> None:
        resource = {"addr": "aws_sns_topic.offline"}
        fake.says(
            "plan", lines=[{"type": "planned_change", "change": {"resource": resource, "action": "update"}}]
        )
        assert self.run(tmp_path).plan() == [PlannedChange("aws_sns_topic.offline", "update")]

    def test_output_that_fails_says_why(self, fake: FakeTerraform, tmp_path: Path) -> None:
        fake.says("output", exit_code=1)
        with pytest.raises(TerraformError, match="terraform output failed"):
            self.run(tmp_path).output()

    def test_an_interrupt_reaches_terraform_which_may_finish(
        self, fake: FakeTerraform, tmp_path: Path
    ) -> None:
        fake.says("apply", lines=[planned(add=1), change("apply_start", "aws_sqs_queue.offline")], seconds=60)

        class Impatient(Recorder):
            def detail(self, text: str) -> None:
                raise KeyboardInterrupt

        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path, Impatient()).apply()
        assert fake.was_interrupted
        assert time.monotonic() - began < 10

    def test_a_terraform_that_ignores_the_interrupt_is_killed(
        self, fake: FakeTerraform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "bin" / "terraform"
        program.write_text(program.read_text().replace("sys.exit(1)", "time.sleep(60)"))
        monkeypatch.setattr(terraform, "_INTERRUPT_SECONDS", 0.5)
        fake.says("apply", lines=[planned(add=1), change("apply_start", "aws_sqs_queue.offline")], seconds=60)

        class Impatient(Recorder):
            def detail(self, text: str) -> None:
                raise KeyboardInterrupt

        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path, Impatient()).apply()
        assert time.monotonic() - began < 10

    def test_on_windows_muster_waits_for_the_command(
        self, fake: FakeTerraform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake.says("state", exit_code=3)
        program = self.run(tmp_path)
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.setattr(os, "execve", None)
        with pytest.raises(SystemExit) as ended:
            program.become(["state", "list"])
        assert ended.value.code == 3

    def test_a_cli_configuration_that_does_not_exist_is_not_passed_to_terraform(
        self, fake: FakeTerraform, tmp_path: Path
    ) -> None:
        self.run(tmp_path, TF_CLI_CONFIG_FILE=str(tmp_path / "missing")).init()
        assert "TF_CLI_CONFIG_FILE" not in fake.calls("init")[0]["environment"]

    def test_a_failure_without_any_output_says_so(self, fake: FakeTerraform, tmp_path: Path) -> None:
        fake.says("init", exit_code=1)
        with pytest.raises(TerraformError, match=r"terraform init failed: \(no output\)"):
            self.run(tmp_path).init()


class TestCommandLine:
    """`muster terraform`."""

    @pytest.fixture(autouse=True)
    def _no_provider_search(self, fake: FakeTerraform, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(terraform, "provider_environment", lambda *_arguments: {})

    def test_it_works_in_the_folder_that_chdir_names(self, fake: FakeTerraform, tmp_path: Path) -> None:
        fake.says("output", lines=[{}])
        arguments = [f"-chdir={tmp_path}", "state", "list"]
        program, rest = terraform.for_command_line(arguments, Recorder())
        program.output()
        assert rest == ["state", "list"]
        assert f"-chdir={tmp_path}" in fake.calls("output")[0]["arguments"]

    def test_an_installed_package_needs_chdir(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(repository, "checkout", lambda: None)
        with pytest.raises(TerraformError) as caught:
            terraform.for_command_line(["plan"], Recorder())
        assert "-chdir=DIR" in str(caught.value.fix)


class TestStall:
    """The emulator lost an answer: Terraform only reports that it is still waiting."""

    def test_a_run_without_progress_is_stopped_and_names_the_resource(
        self, fake: FakeTerraform, tmp_path: Path
    ) -> None:
        still = change("apply_progress", "aws_sqs_queue.offline", elapsed_seconds=10)
        fake.says(
            "apply", lines=[planned(add=1), change("apply_start", "aws_sqs_queue.offline"), still], seconds=60
        )
        stalling = Terraform(tmp_path, environment=os.environ, stall_seconds=1)
        began = time.monotonic()
        with pytest.raises(TerraformStalled, match=r"no progress for 1 s at aws_sqs_queue\.offline"):
            stalling.apply()
        assert time.monotonic() - began < 10
        assert fake.was_interrupted

    def test_progress_of_other_resources_does_not_hide_it(self, fake: FakeTerraform, tmp_path: Path) -> None:
        others = [
            change(what, f"aws_sns_topic.number{n}")
            for n in range(9)
            for what in ("apply_start", "apply_complete")
        ]
        lines = [planned(add=10), change("apply_start", "aws_sqs_queue.offline"), *others]
        fake.says("apply", lines=lines, seconds=60)
        stalling = Terraform(tmp_path, environment=os.environ, stall_seconds=1)
        with pytest.raises(TerraformStalled, match=r"at aws_sqs_queue\.offline"):
            stalling.apply()

    def test_a_data_source_that_is_read_for_too_long_is_a_stall(
        self, fake: FakeTerraform, tmp_path: Path
    ) -> None:
        address = "data.aws_caller_identity.current"
        still = [change("apply_progress", address, action="read", elapsed_seconds=n) for n in (10, 20)]
        fake.says("apply", lines=[change("apply_start", address, action="read"), *still], seconds=60)
        with pytest.raises(TerraformStalled, match="no progress for 1 s"):
            Terraform(tmp_path, environment=os.environ, stall_seconds=1).apply()

    def test_a_download_has_no_limit(self, fake: FakeTerraform, tmp_path: Path) -> None:
        fake.says("init", seconds=0.5)
        Terraform(tmp_path, environment=os.environ, stall_seconds=0.1).init()
