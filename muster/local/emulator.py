"""The embedded AWS emulator (MiniStack) as a process: started, recognised later, stopped with its workers.

It listens on 127.0.0.1 only, and runs in a session of its own, so that one signal to its process group also
ends the Lambda workers it spawned. A process is remembered by id and start time and is never signalled unless
both match: the operating system reuses the ids of ended processes.

It begins as a launcher that waits until its id is recorded and then becomes the emulator, which keeps id and
start time. However the caller ends before that, by an exception, an interrupt or SIGKILL, the launcher's
standard input closes and it ends too: no emulator ever runs that is not recorded.
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
# What a program needs of the caller's environment to run at all. The rest, AWS credentials first, stays out.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")

_PROC = Path("/proc")  # Linux; macOS has none

_MODULE = "muster.local.embedded"
_LAUNCHER = """\
import os, sys
if os.read(0, 1):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(sys.argv[1], sys.argv[1:])
"""

# The emulators that this very process started.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Process:
    """A process, told from any other that ever had its id by when it started."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the live process with this id, or None. A zombie is not alive."""
        started = _started(pid)
        return None if started is None else cls(pid, started)

    def alive(self) -> bool:
        """Tell whether this very process still runs."""
        if _started(self.pid) == self.started:
            return True
        if child := _children.get(self.pid):
            child.poll()  # an ended child stays a zombie until its parent looks
        return False


def local_environment(endpoint_url: str) -> dict[str, str]:
    """Return the AWS settings that make any SDK talk to a local endpoint, and to nothing else."""
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


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def require_free(port: int) -> None:
    """Raise StackError, naming the way out, when something else has this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise StackError(
                f"Port {port} of {HOST} {'is taken by another program' if taken else 'cannot be used'}.",
                fix="Choose another with --port, or --port 0 for any free one.",
            ) from error


def start(
    port: int,
    *,
    log: Path,
    folder: Path,
    record: Callable[[Process], object],
    settings: Mapping[str, str] | None = None,
) -> Process:
    """Start the emulator and return at once. Its temporary files stay in `folder`.

    `record` gets the process before the emulator runs; when it raises or is interrupted, nothing is left.
    `settings` are environment variables of `muster.local.embedded`, such as MUSTER_LOG_DIR.
    """
    if find_spec("ministack") is None:
        raise StackError("The embedded emulator is not installed.", fix="pip install 'muster[local]'")
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment |= {
        "BIND_HOST": HOST,
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOST": HOST,
        "MINISTACK_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        # Enforces the policies of the functions' roles. The key above may do anything.
        "AUTH": "true",
        "TMPDIR": str(folder),
        "STATE_DIR": str(folder / "state"),
        "S3_DATA_DIR": str(folder / "s3"),
        # Two of its listeners bind every interface whatever BIND_HOST says; nothing here needs them.
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        # MiniStack removes every container labelled as its own, even another instance's: show it no Docker.
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
    with cast(IO[bytes], child.stdin) as word:  # which the launcher waits for; it ends when this block does
        _children[child.pid] = child
        process = Process.of(child.pid)
        if process is None:
            raise StackError(f"The emulator ended at once. {_last_lines(log)}")
        record(process)
        with contextlib.suppress(BrokenPipeError):
            word.write(b"1")
    return process


def wait_until_healthy(process: Process, endpoint_url: str, *, log: Path) -> None:
    """Return when the emulator answers; raise StackError with its last words if it ends or takes a minute."""
    deadline = time.monotonic() + _START_SECONDS
    while not healthy(endpoint_url):
        if not process.alive():
            raise StackError(f"The emulator ended while starting. {_last_lines(log)}", fix=f"See {log}")
        if time.monotonic() > deadline:
            raise StackError(f"The emulator did not answer within {_START_SECONDS:.0f} s.", fix=f"See {log}")
        time.sleep(_POLL_SECONDS)


def healthy(endpoint_url: str) -> bool:
    """Tell whether an emulator, MiniStack or LocalStack, answers at this endpoint."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{endpoint_url}/_localstack/health", timeout=2):
            return True
    except (OSError, HTTPException, ValueError):
        return False


def stop(process: Process) -> None:
    """End the emulator and its workers: SIGTERM, and SIGKILL for what is left after ten seconds.

    Does nothing when the process is gone or its id belongs to another one by now. (Workers whose emulator is
    gone end by themselves: their standard input closes.)
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not process.alive():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + _STOP_SECONDS
        while process.alive() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _started(pid: int) -> str | None:
    """Return when a process started, in the system's own terms; None for none and for zombies."""
    if (_PROC / "self" / "stat").exists():
        try:
            # Field 2 is the name in parentheses, which may hold anything; field 3 is the state, 22 the start.
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    # The start is text in the caller's language and time zone, and has to be the same text for every caller.
    told = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    state, _, started = told.partition(" ")
    return None if not told or state.startswith("Z") else started.strip()


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES_SHOWN:]
    return f"Its last words: {' | '.join(lines)}" if lines else "It said nothing."
