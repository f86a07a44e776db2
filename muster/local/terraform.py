"""Runs Terraform: finds the program, turns its output into progress and errors, and ends it in time."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from muster.errors import TerraformError, TerraformStalled
from muster.local import repository
from muster.local.provider import numbers, provider_environment
from muster.progress import Progress, Silent

_MINIMUM_VERSION = (1, 11)

# How long an interrupted Terraform may take to finish its requests and write its state. A run that stalled
# gets less, because the answer that it waits for is lost.
_INTERRUPT_SECONDS = 15.0
_STALLED_INTERRUPT_SECONDS = 2.0


@dataclass(frozen=True)
class PlannedChange:
    """A change that a plan contains: a resource's address, and "create", "update", "delete" or "replace"."""

    address: str
    action: str


@dataclass(frozen=True)
class Binary:
    """The terraform program: its path, and the platform of its providers, such as "linux_amd64"."""

    path: str
    platform: str


def find_binary() -> Binary:
    """Return the `terraform` on the PATH. Raises TerraformError if there is none or it is older than 1.11."""
    fix = "Install Terraform 1.11 or newer: https://developer.hashicorp.com/terraform/install"
    path = shutil.which("terraform")
    if path is None:
        raise TerraformError("Terraform is not installed, or not on the PATH.", fix=fix)
    done = subprocess.run([path, "version", "-json"], capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout)
        version, platform = str(answer["terraform_version"]), str(answer["platform"])
    except (ValueError, KeyError) as error:
        raise TerraformError(f"Cannot read the version of {path}: {done.stderr.strip()}", fix=fix) from error
    if numbers(version) < _MINIMUM_VERSION:
        raise TerraformError(f"Terraform {version} is too old.", fix=fix)
    return Binary(path, platform)


class Terraform:
    """Terraform bound to one root module and one environment.

    Terraform runs in a session of its own, without the terminal's signals. When the caller is interrupted,
    Terraform gets one SIGINT and time to finish its requests and write its state.
    """

    def __init__(
        self,
        module: Path,
        *,
        environment: Mapping[str, str],
        progress: Progress | None = None,
        stall_seconds: float | None = None,
    ) -> None:
        """Find the binary. `environment` is the complete environment: Terraform inherits nothing else.

        An apply, a destroy or a plan raises TerraformStalled when one resource takes `stall_seconds`, or
        Terraform is silent for as long: the AWS provider itself waits 300 s for a lost answer.
        """
        self._stall_seconds = stall_seconds
        self._binary = find_binary()
        self._command = [self._binary.path, f"-chdir={module}"]
        self._environment = {**environment, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}
        # Terraform warns on every run about a configuration file that is named but missing.
        if not Path(environment.get("TF_CLI_CONFIG_FILE", os.devnull)).exists():
            del self._environment["TF_CLI_CONFIG_FILE"]
        self._progress = progress or Silent()

    def find_provider(self, cache: Path) -> None:
        """Choose the source from which `init` installs the provider; see `muster.local.provider`."""
        self._environment |= provider_environment(
            self._binary.platform, self._environment, cache, self._progress
        )

    def init(self) -> None:
        """Install the provider and the modules."""
        self._run("init", "-input=false")

    def apply(self, *arguments: str) -> None:
        """Create and change resources as the configuration says, without confirmation."""
        self._run("apply", "-input=false", "-auto-approve", *arguments)

    def destroy(self, *arguments: str) -> None:
        """Destroy everything in the state, without confirmation."""
        self._run("destroy", "-input=false", "-auto-approve", *arguments)

    def plan(self, *arguments: str) -> list[PlannedChange]:
        """Return the changes that an apply would make. Right after an apply there are none."""
        changes: list[PlannedChange] = []

        def collect(message: Mapping[str, Any]) -> None:
            if message.get("type") == "planned_change":
                change = message["change"]
                changes.append(PlannedChange(change["resource"]["addr"], change["action"]))

        self._run("plan", "-input=false", *arguments, on_message=collect)
        return changes

    def output(self) -> dict[str, Any]:
        """Return `terraform output -json`: {name: {"value": ..., "type": ..., "sensitive": ...}}."""
        done = subprocess.run(
            [*self._command, "output", "-json", "-no-color"],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise TerraformError(f"terraform output failed: {_one_line(done.stderr)}")
        outputs: dict[str, Any] = json.loads(done.stdout)
        return outputs

    def become(self, arguments: list[str]) -> NoReturn:
        """Replace this process by a Terraform command, which gets the terminal's signals.

        Windows cannot replace a process: there this waits for the command and exits with its code.
        """
        if sys.platform == "win32":
            done = subprocess.run([*self._command, *arguments], env=self._environment, check=False)
            sys.exit(done.returncode)
        os.execve(self._binary.path, [*self._command, *arguments], self._environment)  # noqa: S606 - no shell

    def _run(
        self, command: str, *arguments: str, on_message: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        """Run with the machine-readable UI (https://developer.hashicorp.com/terraform/internals/machine-readable-ui)."""
        view = _View(self._progress)
        with subprocess.Popen(
            [*self._command, command, "-json", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            lines: queue.Queue[str | None] = queue.Queue()
            # A thread, because reading a pipe has no time limit. It keeps reading after an interrupt, so that
            # a full pipe cannot block Terraform.
            reader = threading.Thread(target=_read_lines, args=(process, lines), daemon=True)
            reader.start()
            limit = None if command == "init" else self._stall_seconds  # a download reports no progress
            try:
                while (line := _next_line(lines, view, limit)) is not None:
                    message = view.read(line)
                    if on_message and message:
                        on_message(message)
            except BaseException as error:
                stalled = isinstance(error, TerraformStalled)
                _interrupt(process, _STALLED_INTERRUPT_SECONDS if stalled else _INTERRUPT_SECONDS)
                raise
            finally:
                reader.join()
        if process.returncode:
            raise TerraformError(f"terraform {command} failed: {'; '.join(view.errors)}")


class _View:
    """Reads the messages of one run: reports progress and collects errors."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0
        self._total = 0
        self._begun: dict[str, float] = {}  # the resources in progress, oldest first
        self._moved = time.monotonic()
        self._errors: list[str] = []
        self._text: list[str] = []

    @property
    def errors(self) -> list[str]:
        """The error diagnostics. Without any, the plain text that Terraform printed before its first JSON."""
        return self._errors or [_one_line(" ".join(self._text)) or "(no output)"]

    @property
    def doing(self) -> str:
        """The address of the resource that has been in progress for longest; empty if there is none."""
        return next(iter(self._begun), "")

    @property
    def idle_seconds(self) -> float:
        """Seconds that this resource has been in progress. Without one, seconds without any other message."""
        return time.monotonic() - next(iter(self._begun.values()), self._moved)

    def read(self, line: str) -> Mapping[str, Any] | None:
        try:
            message: Any = json.loads(line)
        except ValueError:
            self._text.append(line)
            return None
        # `apply_progress` only says that a resource, or a data source, is still in progress.
        if not isinstance(message, dict) or message.get("type") != "apply_progress":
            self._moved = time.monotonic()
        match message:
            case {"type": "change_summary", "changes": {"operation": "plan"} as planned}:
                self._total = planned["add"] + planned["change"] + planned["remove"]
            case {"hook": {"action": "read"}}:
                pass  # data sources, which the plan does not count
            case {"type": "apply_start" | "apply_progress", "hook": {"resource": {"addr": address}, **hook}}:
                seconds = f", {hook['elapsed_seconds']} s" if "elapsed_seconds" in hook else ""
                self._begun.setdefault(address, time.monotonic())
                self._progress.detail(f"{self._done}/{self._total} {address}{seconds}")
            case {"type": "apply_errored", "hook": {"resource": {"addr": address}}}:
                self._begun.pop(address, None)
            case {"type": "apply_complete", "hook": {"resource": {"addr": address}}}:
                self._begun.pop(address, None)
                self._done += 1
                self._progress.detail(f"{self._done}/{self._total} {address}")
            case {"type": "diagnostic", "diagnostic": {"severity": "error"} as diagnostic}:
                self._errors.append(_describe(diagnostic))
        return message if isinstance(message, dict) else None


def output(module: Path) -> dict[str, Any]:
    """Return the outputs of a root module, read with the user's own backend and credentials."""
    return Terraform(module.resolve(), environment=os.environ).output()


def for_command_line(arguments: list[str], progress: Progress) -> tuple[Terraform, list[str]]:
    """Return Terraform for `muster terraform ARGUMENTS`, and the arguments to run it with.

    It works in the checkout's terraform/, or in the folder that a leading `-chdir=DIR` names. An installed
    package has only a copy of terraform/, which must not get a state: there `-chdir` is required.
    """
    checkout = repository.checkout()
    if arguments and arguments[0].startswith("-chdir="):
        module = Path(arguments[0].removeprefix("-chdir=")).absolute()
        arguments = arguments[1:]
    elif checkout:
        module = checkout / "terraform"
    else:
        raise TerraformError(
            "An installed Muster has no terraform/ folder to work in.",
            fix="Name one: muster terraform -chdir=DIR ...",
        )
    terraform = Terraform(module, environment=os.environ, progress=progress)
    terraform.find_provider(repository.cache_dir())
    return terraform, arguments


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Put each line that a process prints into `lines`, and None at the end."""
    try:
        for line in process.stdout or ():
            lines.put(line)
    finally:
        lines.put(None)


def _next_line(lines: queue.Queue[str | None], view: _View, limit: float | None) -> str | None:
    """Return the next line, or None after the last.

    Raises TerraformStalled when a resource has been in progress for `limit` seconds, or Terraform silent.
    """
    while True:
        left = None if limit is None else limit - view.idle_seconds
        if left is not None and left <= 0:
            at = f" at {view.doing}" if view.doing else ""
            raise TerraformStalled(
                f"Terraform made no progress for {limit:.0f} s{at}.",
                fix="Run the command again: it continues where it stopped.",
            )
        with suppress(queue.Empty):
            return lines.get(timeout=left)


def _interrupt(process: subprocess.Popen[str], seconds: float) -> None:
    """Send SIGINT, and SIGKILL to the process group if Terraform has not ended after `seconds`."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        # Any other exception is a second interrupt by the user.
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def _describe(diagnostic: Mapping[str, Any]) -> str:
    where = diagnostic.get("range") or {}
    place = f"{where['filename']}:{where['start']['line']}: " if where else ""
    detail = f". {diagnostic['detail']}" if diagnostic.get("detail") else ""
    return _one_line(f"{place}{diagnostic['summary']}{detail}")


def _one_line(text: str) -> str:
    return " ".join(text.split())
