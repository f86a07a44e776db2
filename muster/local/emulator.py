"""Starts and stops the process of the embedded AWS emulator, MiniStack.

The emulator listens on 127.0.0.1 only. It runs in its own session, so that one signal to its process group
also ends its Lambda workers. Muster records the process id and the start time, and sends a signal only if
both match: the operating system reuses the ids of ended processes.

The process starts as a launcher. It waits until its id is recorded, and then becomes the emulator, with the
same id and start time. When the caller ends before that, even by SIGKILL, the launcher's standard input
closes and it ends too. So no emulator runs unrecorded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

from muster.errors import StackError

HOST = "127.0.0.1"
REGION = "us-east-1"

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.1
_LOG_LINES_SHOWN = 5
# What a program needs from the caller's environment. Everything else, AWS credentials above all, is left out.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")

_PROC = Path("/proc")  # Linux; macOS has none

_MODULE = "muster.local.embedded"
_LAUNCHER = """\
import os, sys
if os.read(0, 1):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(sys.argv[1], sys.argv[1:])
"""

# The emulators that this process started.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Process:
    """A process. Its start time distinguishes it from other processes that had the same id."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the live process with this id, or None. A zombie is not alive."""
        started = _started(pid)
        return None if started is None else cls(pid, started)

    def alive(self) -> bool:
        """Return whether this process is still running."""
        if _started(self.pid) == self.started:
            return True
        if child := _children.get(self.pid):
            child.poll()  # an ended child stays a zombie until its parent polls it
        return False


def local_environment(endpoint_url: str) -> dict[str, str]:
    """Return the settings with which every AWS SDK uses a local endpoint, and nothing else."""
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def install_fix(package: str) -> str:
    """Return how to get a missing package. `muster` on PyPI is another project, so the fix names a path."""
    return f"pip install '/path/to/muster[local]' (a checkout or a wheel), or pip install {package}."


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def require_free(port: int) -> None:
    """Raise StackError when this port of 127.0.0.1 is taken or cannot be used."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            if taken and healthy(f"http://{HOST}:{port}"):
                folder = _state_dir_of(port)
                state = f" Its state is in {folder}." if folder else ""
                use = (
                    f"set MUSTER_STATE_DIR={folder}"
                    if folder
                    else "run `muster env` in the folder of its stack"
                )
                raise StackError(
                    f"Port {port} of {HOST} is taken by an emulator that is already running.{state}",
                    fix=f"To use its stack, {use}. For another stack choose --port 0, a free port.",
                ) from error
            raise StackError(
                f"Port {port} of {HOST} {'is taken by another program' if taken else 'cannot be used'}.",
                fix="Choose another with --port, or a free one with --port 0.",
            ) from error


def start(
    port: int,
    *,
    log: Path,
    folder: Path,
    record: Callable[[Process], object],
    settings: Mapping[str, str] | None = None,
) -> Process:
    """Start the emulator and return without waiting for it. Its temporary files are in `folder`.

    `record` gets the process before the emulator runs. When it raises or is interrupted, the process ends.
    `settings` are environment variables of `muster.local.embedded`, such as MUSTER_LOG_DIR.
    """
    if find_spec("ministack") is None:
        raise StackError("The embedded emulator is not installed.", fix=install_fix("ministack"))
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment |= {
        "BIND_HOST": HOST,
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOST": HOST,
        "MINISTACK_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        # Enforces the policies of the functions' roles. The key above is allowed everything.
        "AUTH": "true",
        "TMPDIR": str(folder),
        "STATE_DIR": str(folder / "state"),
        "S3_DATA_DIR": str(folder / "s3"),
        # These two listeners ignore BIND_HOST and bind every interface. Muster does not need them.
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        # MiniStack removes all containers with its label, also those of other instances. So it gets no
        # Docker.
        "DOCKER_HOST": f"unix://{folder / 'no-docker.sock'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        **(settings or {}),
    }
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, sys.executable, "-m", _MODULE],
            bufsize=0,
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with cast(
        IO[bytes], child.stdin
    ) as launcher:  # it waits for a byte, and ends when this block closes the pipe
        _children[child.pid] = child
        process = Process.of(child.pid)
        if process is None:
            raise StackError(f"The emulator ended immediately. {_last_lines(log)}")
        record(process)
        with contextlib.suppress(BrokenPipeError):
            launcher.write(b"1")
    return process


def wait_until_healthy(process: Process, endpoint_url: str, *, log: Path) -> None:
    """Return when the emulator answers. Raises StackError when it ends, or is silent for a minute."""
    deadline = time.monotonic() + _START_SECONDS
    while not healthy(endpoint_url):
        if not process.alive():
            raise StackError(f"The emulator ended while starting. {_last_lines(log)}", fix=f"See {log}")
        if time.monotonic() > deadline:
            raise StackError(f"The emulator did not answer within {_START_SECONDS:.0f} s.", fix=f"See {log}")
        time.sleep(_POLL_SECONDS)


def healthy(endpoint_url: str) -> bool:
    """Return whether an emulator, MiniStack or LocalStack, answers at this endpoint."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{endpoint_url}/_localstack/health", timeout=2):
            return True
    except (OSError, HTTPException, ValueError):
        return False


def stop(process: Process) -> None:
    """End the emulator and its workers with SIGTERM, and after ten seconds with SIGKILL.

    Does nothing when the process has ended, or when its id belongs to another process now. Workers end by
    themselves when the emulator has ended, because their standard input closes.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not process.alive():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + _STOP_SECONDS
        while process.alive() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _state_dir_of(port: int) -> Path | None:
    """Return the state directory of the Muster emulator on a port, if /proc shows it."""
    for path in _PROC.glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's process, or an ended one
            entries = path.read_bytes().split(b"\0")
            logs = next((e for e in entries if e.startswith(b"MUSTER_LOG_DIR=")), None)
            if logs and f"GATEWAY_PORT={port}".encode() in entries:
                return Path(os.fsdecode(logs.partition(b"=")[2])).parent
    return None


def _started(pid: int) -> str | None:
    """Return the start time of a process, as the system prints it; None for no process or a zombie."""
    if (_PROC / "self" / "stat").exists():
        try:
            # Field 2 is the name in parentheses, which may contain anything. Field 3 is the state, 22 the
            # start.
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    # `ps` prints the start in the caller's language and time zone: fix both, so that every caller gets one
    # text.
    line = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    state, _, started = line.partition(" ")
    return None if not line or state.startswith("Z") else started.strip()


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES_SHOWN:]
    return f"Last log lines: {' | '.join(lines)}" if lines else "It printed nothing."
