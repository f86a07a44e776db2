"""Runs Terraform: finds it and a source for the AWS provider, turns its output into progress and errors.

The provider comes from the first of these that applies:

1. the filesystem mirror that MUSTER_TERRAFORM_MIRROR names;
2. whatever Terraform's own CLI configuration says, when it has a `provider_installation` block;
3. the public registry, when it answers;
4. a filesystem mirror or plugin cache found on this machine's disk.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn

from muster.errors import TerraformError, TerraformStalled
from muster.local import repository
from muster.progress import Progress, Silent

MIRROR_VARIABLE = "MUSTER_TERRAFORM_MIRROR"

_MINIMUM_VERSION = (1, 11)
_PROVIDER_SINCE, _PROVIDER_BEFORE = (5, 100), (7,)
_REGISTRY = "https://registry.terraform.io/.well-known/terraform.json"
_REGISTRY_SECONDS = 5.0
_PROVIDER = Path("hashicorp/aws")
_HOST = "registry.terraform.io"

# Where people and distributions put plugins, likeliest first; relative ones are below the home directory.
_PLAUSIBLE_ROOTS = (
    Path(".terraform.d"),
    Path(".local/share/terraform"),
    Path("Library/Application Support/io.terraform"),
    Path("/opt"),
    Path("/usr/local"),
    Path("/usr/share"),
    Path("/usr/lib"),
    Path("/var/lib"),
)
_SEARCH_SECONDS = 30.0
_NOT_SEARCHED = {Path("/proc"), Path("/sys"), Path("/dev"), Path("/run"), Path("/System"), Path("/Volumes")}
_NOT_SEARCHED_NAMES = {"node_modules", "site-packages", "__pycache__", ".git"}
_LOCAL_FILESYSTEMS = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}

# How long an interrupted Terraform may take to finish the requests in flight and write its state.
_INTERRUPT_SECONDS = 15.0
# The same for a run that stalled: what it waits for will not come.
_STALLED_INTERRUPT_SECONDS = 2.0


@dataclass(frozen=True)
class PlannedChange:
    """A change that a plan found: a resource's address, and "create", "update", "delete" or "replace"."""

    address: str
    action: str


@dataclass(frozen=True)
class Binary:
    """The terraform program: where it is, and its platform as providers are named, "linux_amd64"."""

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
        told = json.loads(done.stdout)
        version, platform = str(told["terraform_version"]), str(told["platform"])
    except (ValueError, KeyError) as error:
        raise TerraformError(f"{path} does not tell its version: {done.stderr.strip()}", fix=fix) from error
    if _version(version) < _MINIMUM_VERSION:
        raise TerraformError(f"Terraform {version} is too old.", fix=fix)
    return Binary(path, platform)


def provider_environment(platform: str, environment: Mapping[str, str], cache: Path) -> dict[str, str]:
    """Return the variables that make Terraform find the AWS provider, as this module's docstring orders them.

    `cache` is a directory for what may be kept between runs: downloaded providers, and the configuration that
    names a mirror. Raises TerraformError when the named mirror is no mirror, or no source is found at all.
    """
    if named := environment.get(MIRROR_VARIABLE):
        mirror = Path(named).expanduser()
        if not holds_provider(mirror, platform):
            raise TerraformError(
                f"{MIRROR_VARIABLE} names {named}, which holds no AWS provider for {platform}.",
                fix=f"Name the directory that contains {_HOST}/{_PROVIDER}/..., or unset the variable.",
            )
        return _mirror_configuration(mirror, cache)
    if _user_configures_installation(environment):
        return {}
    if _registry_answers():
        plugins = cache / "plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        return {"TF_PLUGIN_CACHE_DIR": environment.get("TF_PLUGIN_CACHE_DIR", str(plugins))}
    if found := find_mirror(platform, search_roots(environment)):
        return _mirror_configuration(found, cache)
    raise TerraformError(
        f"The AWS provider is not to be had: {_HOST} does not answer, no copy for {platform} is on the disk.",
        fix=f"Go online, or set {MIRROR_VARIABLE} to a directory made by `terraform providers mirror`.",
    )


def holds_provider(mirror: Path, platform: str) -> bool:
    """Tell whether a directory is a filesystem mirror, packed or unpacked, with a usable AWS provider."""
    provider = mirror / _HOST / _PROVIDER
    unpacked = provider.glob(f"*/{platform}/terraform-provider-aws*")
    packed = provider.glob(f"terraform-provider-aws_*_{platform}.zip")
    versions = [*(path.parents[1].name for path in unpacked), *(path.name.split("_")[1] for path in packed)]
    return any(_is_wanted(version) for version in versions)


def search_roots(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the directories to search for a mirror: the plausible ones first, then the whole disk."""
    if plugins := environment.get("TF_PLUGIN_CACHE_DIR"):
        yield Path(plugins)
    yield from (Path.home() / root for root in _PLAUSIBLE_ROOTS)
    yield from (Path.home(), Path("/"))


def find_mirror(platform: str, roots: Iterable[Path], *, seconds: float = _SEARCH_SECONDS) -> Path | None:
    """Search `roots` in order, each level by level; return the first mirror, None if none is found in time.

    Links are not followed, and network file systems, /proc and the like are left out.
    """
    deadline = time.monotonic() + seconds
    foreign = _foreign_mounts()
    seen: set[Path] = set()
    for root in roots:
        queue = deque([root])
        while queue and time.monotonic() < deadline:
            directory = queue.popleft()
            if directory in seen or directory in foreign or directory in _NOT_SEARCHED:
                continue
            seen.add(directory)
            names = _subdirectories(directory)
            if _HOST in names and holds_provider(directory, platform):
                return directory
            queue.extend(directory / name for name in names if name not in _NOT_SEARCHED_NAMES)
    return None


class Terraform:
    """Terraform bound to one root module and one environment.

    Its runs do not get the terminal's signals: an interrupt of the caller is passed on once, and Terraform
    gets the time to finish its requests and write its state before the interrupt is raised again.
    """

    def __init__(
        self,
        module: Path,
        *,
        environment: Mapping[str, str],
        progress: Progress | None = None,
        stall_seconds: float | None = None,
    ) -> None:
        """Find the binary; `environment` is complete, nothing is inherited.

        An apply, a destroy or a plan in which no resource makes progress for `stall_seconds` is stopped and
        raises TerraformStalled: the AWS provider itself waits 300 s for an answer that was lost.
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
        """Settle where `init` gets the provider from; `provider_environment` says how."""
        self._environment |= provider_environment(self._binary.platform, self._environment, cache)

    def init(self) -> None:
        """Install the provider and the modules."""
        self._run("init", "-input=false")

    def apply(self, *arguments: str) -> None:
        """Create and change what the configuration asks for, without asking back."""
        self._run("apply", "-input=false", "-auto-approve", *arguments)

    def destroy(self, *arguments: str) -> None:
        """Destroy everything in the state, without asking back."""
        self._run("destroy", "-input=false", "-auto-approve", *arguments)

    def plan(self, *arguments: str) -> list[PlannedChange]:
        """Return what an apply would change: an empty list right after an apply."""
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
        """Replace this process by any Terraform command; on Windows, which cannot, wait for it."""
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
            # A thread, because a read of a pipe has no time limit. It goes on reading after an interrupt, so
            # that a full pipe cannot hold Terraform up.
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
    """Follows one run's messages: counts changes for the progress, collects errors."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0
        self._total = 0
        self._doing = ""
        self._moved = time.monotonic()
        self._errors: list[str] = []
        self._text: list[str] = []

    @property
    def errors(self) -> list[str]:
        """The error diagnostics, or, from a Terraform that failed before it spoke JSON, its plain text."""
        return self._errors or [_one_line(" ".join(self._text)) or "it said nothing about why"]

    @property
    def doing(self) -> str:
        """The resource of the last message, if there was one."""
        return self._doing

    @property
    def idle_seconds(self) -> float:
        """How long no resource has made progress. A message that one is still being made is none."""
        return time.monotonic() - self._moved

    def read(self, line: str) -> Mapping[str, Any] | None:
        try:
            message: Any = json.loads(line)
        except ValueError:
            self._text.append(line)
            return None
        if isinstance(message, dict) and message.get("type") != "apply_progress":
            self._moved = time.monotonic()
        match message:
            case {"type": "change_summary", "changes": {"operation": "plan"} as planned}:
                self._total = planned["add"] + planned["change"] + planned["remove"]
            case {"hook": {"action": "read"}}:
                pass  # data sources, which the plan does not count
            case {"type": "apply_start" | "apply_progress", "hook": {"resource": {"addr": address}, **hook}}:
                seconds = f", {hook['elapsed_seconds']} s" if "elapsed_seconds" in hook else ""
                self._doing = address
                self._progress.detail(f"{self._done}/{self._total} {address}{seconds}")
            case {"type": "apply_complete", "hook": {"resource": {"addr": address}}}:
                self._done += 1
                self._progress.detail(f"{self._done}/{self._total} {address}")
            case {"type": "diagnostic", "diagnostic": {"severity": "error"} as diagnostic}:
                self._errors.append(_describe(diagnostic))
        return message if isinstance(message, dict) else None


def output(module: Path) -> dict[str, Any]:
    """Return the outputs of a root module that was applied with the user's own backend and credentials."""
    return Terraform(module.resolve(), environment=os.environ).output()


def become(arguments: list[str]) -> NoReturn:
    """Replace this process by Terraform, which so gets the terminal's signals.

    It runs in the checkout's terraform/, or in the directory that a leading `-chdir=DIR` names. An installed
    package has only a copy of terraform/, which must not get a state: there the directory must be named.
    """
    if arguments and arguments[0].startswith("-chdir="):
        module = Path(arguments.pop(0).removeprefix("-chdir=")).absolute()
    elif checkout := repository.checkout():
        module = checkout / "terraform"
    else:
        raise TerraformError(
            "This Muster is an installed package, which has no terraform/ directory of its own to work in.",
            fix="Name one: muster terraform -chdir=DIR ...",
        )
    terraform = Terraform(module, environment=os.environ)
    terraform.find_provider(repository.cache_dir())
    terraform.become(arguments)


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Put each line that a process prints into `lines`, and None at the end."""
    try:
        for line in process.stdout or ():
            lines.put(line)
    finally:
        lines.put(None)


def _next_line(lines: queue.Queue[str | None], view: _View, limit: float | None) -> str | None:
    """Return the next line, None after the last. Raises TerraformStalled when nothing moved for `limit` s."""
    while True:
        left = None if limit is None else limit - view.idle_seconds
        if left is not None and left <= 0:
            at = f" at {view.doing}" if view.doing else ""
            raise TerraformStalled(
                f"Terraform made no progress for {limit:.0f} s{at}.",
                fix="Run the command again: it goes on from where it was.",
            )
        with suppress(queue.Empty):
            return lines.get(timeout=left)


def _interrupt(process: subprocess.Popen[str], seconds: float) -> None:
    """Let Terraform finish its requests and write its state; if that takes too long, kill its group."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        # Anything but the timeout is a second, impatient interrupt.
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def _describe(diagnostic: Mapping[str, Any]) -> str:
    where = diagnostic.get("range") or {}
    place = f"{where['filename']}:{where['start']['line']}: " if where else ""
    detail = f". {diagnostic['detail']}" if diagnostic.get("detail") else ""
    return _one_line(f"{place}{diagnostic['summary']}{detail}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _version(text: str) -> tuple[int, ...]:
    """Return the numbers of "1.11.4" or "6.0.0-beta1", which sorts like 6.0.0 here."""
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("-")[0]))


def _is_wanted(version: str) -> bool:
    numbers = _version(version)
    return numbers >= _PROVIDER_SINCE and numbers < _PROVIDER_BEFORE


def _mirror_configuration(mirror: Path, cache: Path) -> dict[str, str]:
    """Write a CLI configuration that takes the AWS provider from `mirror` and everything else as usual."""
    name, directory = json.dumps(f"{_HOST}/{_PROVIDER}"), json.dumps(str(mirror.resolve()))
    path = cache / "mirror.tfrc"
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(
        "provider_installation {\n"
        f"  filesystem_mirror {{\n    path    = {directory}\n    include = [{name}]\n  }}\n"
        f"  direct {{\n    exclude = [{name}]\n  }}\n"
        "}\n"
    )
    partial.replace(path)
    return {"TF_CLI_CONFIG_FILE": str(path)}


def _user_configures_installation(environment: Mapping[str, str]) -> bool:
    """Tell whether Terraform's CLI configuration, the named or the default file, says where providers are."""
    path = Path(environment.get("TF_CLI_CONFIG_FILE") or Path.home() / ".terraformrc")
    try:
        return "provider_installation" in path.read_text()
    except OSError:
        return False


def _registry_answers() -> bool:
    try:
        with urllib.request.urlopen(_REGISTRY, timeout=_REGISTRY_SECONDS) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, HTTPException):
        return False


def _subdirectories(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _foreign_mounts() -> set[Path]:
    """Return the mount points of file systems that are not on a local disk, where the system lists them."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return set()
    return {Path(mount[1]) for mount in mounts if mount[2] not in _LOCAL_FILESYSTEMS} - {Path("/")}
