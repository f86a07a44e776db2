"""Terraform: where it and its provider come from, what a run shows, and how it ends."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from muster.errors import TerraformError, TerraformStalled
from muster.local import terraform
from muster.local.terraform import PlannedChange, Terraform
from tests.support.fake_terraform import PLATFORM, FakeTerraform, change, failure, planned

UNPACKED = f"registry.terraform.io/hashicorp/aws/{{}}/{PLATFORM}/terraform-provider-aws_v{{}}_x5"
PACKED = f"registry.terraform.io/hashicorp/aws/terraform-provider-aws_{{}}_{PLATFORM}.zip"


def make_mirror(folder: Path, version: str = "5.100.0", layout: str = UNPACKED) -> Path:
    path = folder / layout.format(version, version)
    path.parent.mkdir(parents=True)
    path.touch()
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTerraform:
    program = FakeTerraform(tmp_path / "bin")
    monkeypatch.setenv("PATH", program.path())
    return program


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No registry, an empty home and an empty disk, unless a test says otherwise."""
    monkeypatch.setattr(terraform, "_registry_answers", lambda: False)
    monkeypatch.setattr(terraform, "search_roots", lambda environment: [])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


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
    def test_new_enough_terraform_is_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
    ) -> None:
        monkeypatch.setenv("PATH", FakeTerraform(tmp_path / "new", version).path())
        assert terraform.find_binary().platform == PLATFORM


class TestProviderSource:
    def find(self, tmp_path: Path, environment: Mapping[str, str] | None = None) -> dict[str, str]:
        return terraform.provider_environment(PLATFORM, environment or {}, tmp_path / "cache")

    def test_named_mirror_wins_over_everything(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(terraform, "_registry_answers", lambda: True)
        mirror = make_mirror(tmp_path / "mirror")
        configuration = tmp_path / "terraformrc"
        configuration.write_text("provider_installation {}")
        found = self.find(
            tmp_path, {"MUSTER_TERRAFORM_MIRROR": str(mirror), "TF_CLI_CONFIG_FILE": str(configuration)}
        )
        assert f'"{mirror}"' in Path(found["TF_CLI_CONFIG_FILE"]).read_text()

    def test_named_mirror_without_the_provider_is_an_error_that_names_the_variable(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(TerraformError, match=r"MUSTER_TERRAFORM_MIRROR names /nowhere") as caught:
            self.find(tmp_path, {"MUSTER_TERRAFORM_MIRROR": "/nowhere"})
        assert "unset the variable" in str(caught.value.fix)

    @pytest.mark.parametrize("named", [True, False])
    def test_the_users_own_installation_settings_are_left_alone(self, tmp_path: Path, named: bool) -> None:
        configuration = tmp_path / "home" / ".terraformrc"
        configuration.parent.mkdir()
        configuration.write_text("provider_installation {}")
        assert self.find(tmp_path, {"TF_CLI_CONFIG_FILE": str(configuration)} if named else {}) == {}

    def test_the_registry_is_used_when_it_answers_and_downloads_are_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(terraform, "_registry_answers", lambda: True)
        monkeypatch.setattr(terraform, "search_roots", lambda environment: pytest.fail("searched the disk"))
        found = self.find(tmp_path, {"TF_CLI_CONFIG_FILE": str(tmp_path / "missing")})
        assert found == {"TF_PLUGIN_CACHE_DIR": str(tmp_path / "cache" / "plugins")}
        assert Path(found["TF_PLUGIN_CACHE_DIR"]).is_dir()

    def test_a_mirror_on_the_disk_is_used_when_the_registry_is_silent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mirror = make_mirror(tmp_path / "disk" / "some" / 'odd "name"')
        monkeypatch.setattr(terraform, "search_roots", lambda environment: [tmp_path / "disk"])
        text = Path(self.find(tmp_path)["TF_CLI_CONFIG_FILE"]).read_text()
        assert str(mirror).replace('"', r"\"") in text
        assert "direct" in text  # other providers still come from where they come from

    def test_no_source_at_all_is_an_error_that_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(TerraformError, match=r"registry\.terraform\.io does not answer") as caught:
            self.find(tmp_path)
        assert "MUSTER_TERRAFORM_MIRROR" in str(caught.value.fix)


class TestMirrorSearch:
    @pytest.mark.parametrize("layout", [UNPACKED, PACKED])
    def test_both_mirror_layouts_are_found_at_any_depth(self, tmp_path: Path, layout: str) -> None:
        mirror = make_mirror(tmp_path / "a" / "b" / "c", layout=layout)
        assert terraform.find_mirror(PLATFORM, [tmp_path]) == mirror

    def test_earlier_roots_win_and_nearer_mirrors_within_one(self, tmp_path: Path) -> None:
        make_mirror(tmp_path / "second")
        make_mirror(tmp_path / "first" / "a" / "deep")
        nearer = make_mirror(tmp_path / "first" / "z")
        assert terraform.find_mirror(PLATFORM, [tmp_path / "first", tmp_path / "second"]) == nearer

    @pytest.mark.parametrize("version", ["4.67.0", "5.99.1", "7.0.0"])
    @pytest.mark.parametrize("layout", [UNPACKED, PACKED])
    def test_versions_the_module_does_not_accept_are_passed_over(
        self, tmp_path: Path, version: str, layout: str
    ) -> None:
        make_mirror(tmp_path / "a", version=version, layout=layout)
        good = make_mirror(tmp_path / "b", version="6.4.0", layout=layout)
        assert terraform.find_mirror(PLATFORM, [tmp_path]) == good

    def test_other_platforms_are_passed_over(self, tmp_path: Path) -> None:
        make_mirror(tmp_path)
        assert terraform.find_mirror("darwin_arm64", [tmp_path]) is None

    def test_links_and_unreadable_or_missing_directories_do_no_harm(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to(tmp_path)
        (tmp_path / "closed").mkdir(mode=0o000)
        assert terraform.find_mirror(PLATFORM, [tmp_path / "missing", tmp_path]) is None

    def test_the_search_ends_in_time(self, tmp_path: Path) -> None:
        make_mirror(tmp_path)
        assert terraform.find_mirror(PLATFORM, [tmp_path], seconds=0) is None

    def test_plugin_directories_come_before_the_whole_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        roots = list(terraform.search_roots({"TF_PLUGIN_CACHE_DIR": "/plugins"}))
        assert roots[:2] == [Path("/plugins"), Path.home() / ".terraform.d"]
        assert roots[-1] == Path("/")


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

    def test_every_error_is_told_with_its_place(self, fake: FakeTerraform, tmp_path: Path) -> None:
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

    def test_a_failure_before_json_begins_is_told_too(self, fake: FakeTerraform, tmp_path: Path) -> None:
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

    def test_an_interrupt_is_passed_on_and_waited_for(self, fake: FakeTerraform, tmp_path: Path) -> None:
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

    def test_on_windows_a_command_is_waited_for(
        self, fake: FakeTerraform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake.says("state", exit_code=3)
        program = self.run(tmp_path)
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.setattr(os, "execve", None)
        with pytest.raises(SystemExit) as ended:
            program.become(["state", "list"])
        assert ended.value.code == 3

    def test_a_configuration_file_that_does_not_exist_is_not_passed_on(
        self, fake: FakeTerraform, tmp_path: Path
    ) -> None:
        self.run(tmp_path, TF_CLI_CONFIG_FILE=str(tmp_path / "missing")).init()
        assert "TF_CLI_CONFIG_FILE" not in fake.calls("init")[0]["environment"]


class TestStall:
    """The emulator lost an answer: Terraform only says that it still waits."""

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

    def test_a_download_has_no_limit(self, fake: FakeTerraform, tmp_path: Path) -> None:
        fake.says("init", seconds=0.5)
        Terraform(tmp_path, environment=os.environ, stall_seconds=0.1).init()
