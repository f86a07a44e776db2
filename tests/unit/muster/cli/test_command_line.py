"""The `muster` command as a whole: its commands, and how it fails."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from muster import cli
from muster.cli import console, messaging
from muster.errors import TerraformError
from muster.local import bundle
from muster.local.bundle import Bundle
from muster.local.emulator import free_port, local_environment
from muster.local.stack import Stack
from tests.unit.muster.test_outputs import FLAT

FOREIGN = "[/x] :secret: [dev] [red]"
"""Text from elsewhere, such as a path or an error of Terraform, that looks like markup."""

COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["muster", *arguments])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_help_lists_every_command_in_reading_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    commands = ["up", "down", "status", "build", "terraform", "outputs", "env", "users", "logs"]
    commands += ["token", "listen", "send", "broadcast", "demo"]
    places = [shown.index(f"│ {command} ") for command in commands]
    assert places == sorted(places)


def test_h_is_help_everywhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ((), *((name,) for name in COMMANDS if name != "terraform")):
        assert run(monkeypatch, *command, "-h") == 0
        assert "Usage: " in capsys.readouterr().out


def test_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"muster {version('muster')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    # Typer asks for the shell that pytest runs in, which may be make's `sh`.
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))
    assert run(monkeypatch, "--show-completion", shell) == 0
    assert "muster" in capsys.readouterr().out


class TestDeployment:
    """`outputs` and `env` print what other commands and shells accept."""

    @pytest.fixture
    def local(self, tmp_path: Path) -> Path:
        path = tmp_path / "outputs.json"
        path.write_text(json.dumps({**FLAT, "endpoint_url": "http://127.0.0.1:4566", "jwt_issuer": "a 'b'"}))
        return path

    def test_outputs_accepts_what_it_prints(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], local: Path
    ) -> None:
        assert run(monkeypatch, "outputs", "--json", "--outputs", str(local)) == 0
        monkeypatch.setattr("sys.stdin", io.StringIO(capsys.readouterr().out))
        assert run(monkeypatch, "outputs", "--outputs", "-") == 0
        assert "websocket_url = wss://a1b2c3d4." in capsys.readouterr().out

    def test_a_shell_accepts_env(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], local: Path
    ) -> None:
        assert run(monkeypatch, "env", "--outputs", str(local)) == 0
        script = capsys.readouterr().out + "env -0"
        before = {"PATH": os.environ["PATH"], "AWS_PROFILE": "mine", "AWS_SESSION_TOKEN": "mine"}
        shell = subprocess.run(["sh", "-c", script], env=before, capture_output=True, text=True, check=True)
        after = dict(entry.split("=", 1) for entry in shell.stdout.strip("\0").split("\0"))
        assert after["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4566"
        assert (after["AWS_ACCESS_KEY_ID"], after["AWS_REGION"]) == ("test", "eu-west-1")
        assert after["MUSTER_JWT_ISSUER"] == "a 'b'"
        assert after["MUSTER_BROADCAST_STATE_MACHINE_ARN"] == FLAT["broadcast_state_machine_arn"]
        assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN"} & after.keys()

    def test_env_of_aws_unsets_what_a_local_stack_set(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        for name, value in local_environment("http://127.0.0.1:4566").items():
            monkeypatch.setenv(name, value)
        path = tmp_path / "outputs.json"
        path.write_text(json.dumps(FLAT))
        assert run(monkeypatch, "env", "--json", "--outputs", str(path)) == 0
        variables = json.loads(capsys.readouterr().out)
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_CONFIG_FILE", "MUSTER_STATE_DIR"):
            assert variables[name] is None
        assert variables["AWS_REGION"] == FLAT["region"]

    def test_one_output_is_printed_alone(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "outputs.json"
        path.write_text(json.dumps(FLAT))
        assert run(monkeypatch, "outputs", "websocket_url", "--outputs", str(path)) == 0
        assert capsys.readouterr().out == f"{FLAT['websocket_url']}\n"
        assert run(monkeypatch, "outputs", "websocket", "--outputs", str(path)) == 2

    def test_env_of_aws_sets_neither_credentials_nor_endpoints(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "outputs.json"
        path.write_text(json.dumps(FLAT))
        assert run(monkeypatch, "env", "--json", "--outputs", str(path)) == 0
        variables = json.loads(capsys.readouterr().out)
        aws = {name for name in variables if name.startswith("AWS_")}
        assert aws == {"AWS_REGION", "AWS_DEFAULT_REGION"}


def test_errors_are_a_sentence_and_a_fix_on_stderr_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "token", "admin-ada", "--state-dir", str(tmp_path)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: There is no stack to talk to")
    assert "Fix: Run `muster up`" in err
    assert "Traceback" not in err


def test_status_without_a_stack_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "status", "--state-dir", str(tmp_path)) == 1
    assert "The local stack is down" in capsys.readouterr().out


class TestForeignText:
    """Text from elsewhere is printed unchanged."""

    @pytest.mark.parametrize("terminal", [True, False])
    def test_in_progress(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
    ) -> None:
        monkeypatch.setattr(console.stderr, "_force_terminal", terminal)
        monkeypatch.setattr(console, "_QUIET_SECONDS", -1.0)
        with console.progress() as shown:
            shown.step(f"Going on, although {FOREIGN}")
            shown.detail(f"1/2 {FOREIGN}")
        err = capsys.readouterr().err
        assert f"Going on, although {FOREIGN}" in err
        assert terminal or f"1/2 {FOREIGN}" in err

    def test_in_errors_and_fixes(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        def fail(_stack: Stack) -> None:
            raise TerraformError(FOREIGN, fix=FOREIGN)

        monkeypatch.setattr(Stack, "up", fail)
        assert run(monkeypatch, "up", "--state-dir", str(tmp_path)) == 1
        assert capsys.readouterr().err == f"Error: {FOREIGN}\nFix: {FOREIGN}\n"

    def test_in_usage_errors(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(monkeypatch, "broadcast", "--to", FOREIGN, "--payload", "{}") == 2
        assert FOREIGN in capsys.readouterr().err

    def test_in_results(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        folder = Path("[dev]") / ":secret:"
        folder.mkdir(parents=True)
        made = Bundle(folder / "functions.zip", folder / "layer.zip", folder / "bundle.json", bytecode=None)
        for path in (made.functions, made.layer):
            path.touch()
        monkeypatch.setattr(bundle, "build", lambda *_arguments, **_options: made)
        assert run(monkeypatch, "build") == 0
        out = capsys.readouterr().out
        assert str(made.functions) in out
        assert f"as {made.manifest} says" in out


class TestEmptyArguments:
    """They come from a variable that a script failed to set."""

    @pytest.mark.parametrize(
        ("command", "option"),
        [
            (name, parameter.opts[0])
            for name, command in COMMANDS.items()
            for parameter in command.params
            if name != "terraform" and not getattr(parameter, "is_flag", False)
        ],
    )
    @pytest.mark.parametrize("value", ["", " "])
    def test_every_option_and_argument_refuses_them(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        command: str,
        option: str,
        value: str,
    ) -> None:
        arguments = [[option, value], [f"{option}={value}"]] if option.startswith("-") else [[value]]
        for given in arguments:
            assert run(monkeypatch, command, *given) == 2
            err = capsys.readouterr().err
            assert "is empty" in err
            assert not option.startswith("-") or option in err

    @pytest.mark.parametrize("value", ["", " \n"])
    def test_an_empty_token_in_the_environment_is_none(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
    ) -> None:
        monkeypatch.setenv("MUSTER_TOKEN", value)
        monkeypatch.setattr(messaging, "Client", None)  # nothing may be sent
        assert run(monkeypatch, "send", "--url", "ws://127.0.0.1", "{}") == 2
        assert "say who connects" in capsys.readouterr().err

    def test_empty_paths_in_the_environment_are_none(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.setenv("MUSTER_OUTPUTS", "")
        assert run(monkeypatch, "token", "ada", "--state-dir", str(tmp_path)) == 2
        assert "no stack to talk to" in capsys.readouterr().err


class TestUsage:
    """An invalid command line is a usage error before anything runs: a sentence, a fix, exit 2."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ["send", "--token", "t", "--url", "ws://127.0.0.1:99999", "{}"],
            ["send", "--token", "t", "--url", "ws://127.0.0.1:port", "{}"],
            ["send", "--token", "t", "--url", "ws://[::1", "{}"],
            ["send", "--token", "t", "--url", "ws://a..b", "{}"],
            ["send", "--token", "t", "--url", "http://127.0.0.1", "{}"],
            ["send", "--token", "t", "--url", "ws://ada:hush@127.0.0.1", "{}"],
            ["listen", "--token", "t", "--url", "ws://127.0.0.1", "--timeout", "nan"],
            ["listen", "--token", "t", "--url", "ws://127.0.0.1", "--timeout", "-1"],
            ["broadcast", "--to", "all", "--payload", "{}", "--timeout", "1e999"],
            ["up", "--port", "65536"],
            ["up", "--endpoint", "http://127.0.0.1:65536"],
            ["up", "--endpoint", "127.0.0.1:4566"],
            ["demo", "--port", "-1"],
            ["token", "ada", "--ttl", "99999999999999"],
            ["build", "--out", __file__],
            ["status", "--state-dir", __file__],
        ],
    )
    def test_it_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        monkeypatch.setattr(messaging, "Client", None)
        assert run(monkeypatch, *arguments) == 2
        err = capsys.readouterr().err
        option = arguments[-2 if arguments[-1] != "{}" else -3]
        assert err.startswith(f"Error: Invalid value for '{option}'")
        assert f"\nFix: See `muster {arguments[0]} --help`." in err
        assert "hush" not in err

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["up", "--port", "x"], "--port"),
            (["up", "--port", "70000"], "65535"),
            (["token", "ada", "--ttl", "0"], "--ttl"),
            (["listen", "--timeout", "soon"], "write a number of seconds, 0 or more."),
            (["up", "--qq"], "--qq"),
            (["build", "--runtim", "x"], "--runtime"),
            (["nothing"], "nothing"),
            (["broadcast"], "--to"),
            (["broadcast", "--to"], "--to"),
            (["broadcast", "--to", "all"], "say what to send: use either --text or --payload."),
            (["token"], "USER_ID"),
            (["status", "more"], "more"),
            (["status", "--json=1"], "--json"),
            (["build", "--arch", "mips"], "x86_64"),
            (["status", "--state-dir", __file__], __file__),
        ],
    )
    def test_the_error_is_one_line_that_names_the_argument_and_one_with_the_fix(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        named: str,
    ) -> None:
        assert run(monkeypatch, *arguments) == 2
        problem, fix = capsys.readouterr().err.splitlines()
        assert problem.startswith("Error: ")
        assert named in problem
        assert re.fullmatch(r"Fix: See `muster( \w+)? --help`\.", fix)

    def test_without_a_command_the_help_is_printed(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(monkeypatch) == 2
        assert "Usage: " in capsys.readouterr().out


class TestFiles:
    """An error of the operating system is a sentence that names the file, and a fix."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ["build", "--out", f"{__file__}/build"],
            ["up", "--state-dir", f"{__file__}/state"],
            ["status", "--state-dir", f"{__file__}/state"],
            ["token", "ada", "--outputs", "x" * 300],
        ],
    )
    def test_a_path_that_cannot_be_used_is_a_usage_error(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        assert run(monkeypatch, *arguments) == 2
        err = capsys.readouterr().err
        assert f"Error: {arguments[-1]}" in err
        assert "Fix: " in err

    @pytest.mark.parametrize(
        ("error", "sentence", "code"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), "No space left on device.", 1),
            (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only file system.", 1),
            (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied.", 1),
            (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), "/x: Is a directory.", 2),
            (OSError("something else"), "something else.", 1),
            (shutil.Error([("/a", "/b", "[Errno 28] No space")]), "/b: [Errno 28] No space.", 1),
        ],
    )
    def test_any_other_failure_is_reported_without_a_trace(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        error: OSError,
        sentence: str,
        code: int,
    ) -> None:
        def fail(*_arguments: object, **_options: object) -> None:
            raise error

        monkeypatch.setattr(bundle, "build", fail)
        assert run(monkeypatch, "build") == code
        err = capsys.readouterr().err
        assert f"Error: {sentence}\n" in err
        assert "Fix: " in err


AS_ON_WINDOWS = """
import importlib.abc, os, signal, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}:
            raise ImportError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules.pop(name, None)
for name in ("fork", "getpgid", "killpg", "setsid"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGQUIT"):
    delattr(signal, name)

from muster import Broadcaster, Client, MusterError, Outputs, Stack
from muster.cli import main
main()
"""


class TestWindows:
    """Without POSIX, everything works except the local stack, which says so."""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", AS_ON_WINDOWS, *arguments]
        environment = {**os.environ, "AWS_MAX_ATTEMPTS": "1"}
        done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
        assert "Traceback" not in done.stderr
        return done

    @pytest.fixture
    def outputs(self, tmp_path: Path) -> Path:
        """A deployment whose endpoints refuse connections."""
        path = tmp_path / "outputs.json"
        endpoint = f"http://127.0.0.1:{free_port()}"
        path.write_text(json.dumps({**FLAT, "endpoint_url": endpoint}))
        return path

    def test_help_and_status_work(self, tmp_path: Path) -> None:
        assert self.run("--help").returncode == 0
        status = self.run("status", "--state-dir", str(tmp_path))
        assert (status.returncode, status.stdout[:23]) == (1, "The local stack is down")

    @pytest.mark.parametrize("command", ["up", "demo"])
    def test_the_local_stack_names_the_systems_it_needs(self, tmp_path: Path, command: str) -> None:
        place = ["--state-dir", str(tmp_path)] if command == "up" else []
        refused = self.run(command, *place)
        assert refused.returncode == 1
        assert "Error: The local stack needs Linux or macOS.\nFix: On Windows run it in WSL" in refused.stderr

    def test_messages_are_sent_to_the_deployment(self, outputs: Path) -> None:
        started = self.run("broadcast", "--to", "all", "--payload", "{}", "--outputs", str(outputs))
        assert "Error: The broadcast cannot be started: Could not connect" in started.stderr
        url = f"ws://127.0.0.1:{free_port()}"
        for command in (["send", "{}"], ["listen"]):
            refused = self.run(*command, "--token", "t", "--url", url)
            assert refused.returncode == 1
            assert refused.stderr.startswith("Error: ")

    def test_a_token_needs_no_stack(self, outputs: Path) -> None:
        refused = self.run("token", "ada", "--outputs", str(outputs))
        assert (
            "Error: This deployment verifies tokens with the keys of an identity provider" in refused.stderr
        )


def test_interrupt_during_imports_ends_without_a_trace() -> None:
    program = """
import sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "botocore":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
from muster.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
