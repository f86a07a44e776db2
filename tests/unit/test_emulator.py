"""The emulator's process: whom it may signal, what it inherits, and what is told when it does not start."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muster import emulator
from muster.emulator import Process
from muster.errors import StackError

SLEEP = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
)


def spawn(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.PIPE)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with spawn(SLEEP) as child:
        yield child
        child.kill()


def known(pid: int) -> Process:
    process = Process.of(pid)
    assert process is not None
    return process


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def group(pgid: int) -> list[int]:
    """The live processes of a process group."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == pgid and not row[2].startswith("Z")]


class TestIdentity:
    def test_a_process_is_recognised_while_it_lives_and_not_after(
        self, sleeper: subprocess.Popen[bytes]
    ) -> None:
        process = known(sleeper.pid)
        assert process.alive()
        sleeper.kill()
        assert wait_for(lambda: not process.alive())
        assert Process.of(sleeper.pid) is None

    def test_another_process_with_the_same_id_is_not_it(self, sleeper: subprocess.Popen[bytes]) -> None:
        assert not Process(sleeper.pid, "an earlier time").alive()


class TestStop:
    def test_a_recycled_id_is_never_signalled(self, sleeper: subprocess.Popen[bytes]) -> None:
        emulator.stop(Process(sleeper.pid, "an earlier time"))
        assert sleeper.poll() is None

    def test_its_workers_end_with_it(self) -> None:
        with spawn(PARENT) as parent:
            assert wait_for(lambda: len(group(parent.pid)) == 2)
            emulator.stop(known(parent.pid))
            assert wait_for(lambda: group(parent.pid) == [])

    def test_what_ignores_the_polite_signal_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulator, "_STOP_SECONDS", 0.3)
        with spawn(STUBBORN) as stubborn:
            assert stubborn.stdout is not None
            stubborn.stdout.readline()
            process = known(stubborn.pid)
            emulator.stop(process)
            assert not process.alive()


class TestPort:
    def test_a_taken_port_is_named_with_the_option_that_helps(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(StackError, match=rf"Port {port} of 127\.0\.0\.1 is taken") as caught:
                emulator.require_free(port)
            assert "--port" in str(caught.value.fix)

    def test_a_free_port_is_free(self) -> None:
        emulator.require_free(emulator.free_port())


class TestStart:
    @pytest.fixture
    def stand_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An interpreter that writes down its environment, instead of the emulator, and ends with a word."""
        program = tmp_path / "python"
        told = tmp_path / "environment.json"
        program.write_text(
            f"#!{sys.executable}\nimport json, os, pathlib, sys\n"
            f"pathlib.Path({str(told)!r}).write_text(json.dumps(dict(os.environ)))\nsys.exit('no room')\n"
        )
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return told

    def test_nothing_of_the_users_reaches_the_emulator_and_it_stays_on_this_machine(
        self, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "PERSIST_STATE", "HTTP_PROXY"):
            monkeypatch.setenv(name, "the user's")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAREAL")
        process = emulator.start(4611, log=tmp_path / "log", folder=tmp_path / "tmp")
        assert wait_for(lambda: not process.alive())
        environment = json.loads(stand_in.read_text())
        assert "the user's" not in environment.values()
        assert environment["AWS_ACCESS_KEY_ID"] == "test"
        assert environment["AUTH"] == "true"  # the functions' roles are enforced
        assert environment["BIND_HOST"] == "127.0.0.1"
        assert environment["IOT_MTLS_ENABLED"] == environment["SFTP_ENABLED"] == "0"
        assert environment["GATEWAY_PORT"] == "4611"
        assert environment["TMPDIR"] == str(tmp_path / "tmp")
        assert not Path(environment["DOCKER_HOST"].removeprefix("unix://")).exists()

    def test_an_emulator_that_ends_while_starting_is_quoted(self, stand_in: Path, tmp_path: Path) -> None:
        log = tmp_path / "log"
        process = emulator.start(4611, log=log, folder=tmp_path / "tmp")
        with pytest.raises(StackError, match="no room"):
            emulator.wait_until_healthy(process, f"http://127.0.0.1:{emulator.free_port()}", log=log)


def test_local_settings_replace_whatever_an_sdk_could_find() -> None:
    settings = emulator.local_environment("http://127.0.0.1:4611")
    assert settings["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4611"
    assert settings["AWS_ACCESS_KEY_ID"] == settings["AWS_SECRET_ACCESS_KEY"] == "test"
    assert settings["AWS_CONFIG_FILE"] == settings["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
