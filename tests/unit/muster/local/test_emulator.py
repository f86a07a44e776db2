"""The emulator's process: which process gets signals, what it inherits, and the errors of its start."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muster.errors import StackError
from muster.local import emulator
from muster.local.emulator import Process

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
    """Return the live processes of a process group."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == pgid and not row[2].startswith("Z")]


class TestIdentity:
    def test_a_process_is_alive_until_it_ends(self, sleeper: subprocess.Popen[bytes]) -> None:
        process = known(sleeper.pid)
        assert process.alive()
        sleeper.kill()
        assert wait_for(lambda: not process.alive())
        assert Process.of(sleeper.pid) is None

    def test_without_proc_it_is_recognised_from_any_language_and_time_zone(
        self, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(emulator, "_PROC", Path("/nowhere"))  # as on macOS
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        process = known(sleeper.pid)
        monkeypatch.setenv("TZ", "America/Los_Angeles")
        assert process.alive()
        assert not Process(sleeper.pid, "Thu Jan  1 00:00:00 1970").alive()
        sleeper.kill()
        assert wait_for(lambda: not process.alive())

    def test_another_process_with_the_same_id_is_not_the_emulator(
        self, sleeper: subprocess.Popen[bytes]
    ) -> None:
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

    def test_a_process_that_ignores_sigterm_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulator, "_STOP_SECONDS", 0.3)
        with spawn(STUBBORN) as stubborn:
            assert stubborn.stdout is not None
            stubborn.stdout.readline()
            process = known(stubborn.pid)
            emulator.stop(process)
            assert not process.alive()


class TestPort:
    @pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
    def test_a_port_taken_by_a_muster_emulator_is_an_error_that_names_its_state(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(emulator, "healthy", lambda url: True)
        with socket.socket() as listener:
            listener.bind((emulator.HOST, 0))
            listener.listen()
            port = listener.getsockname()[1]
            settings = {"GATEWAY_PORT": str(port), "MUSTER_LOG_DIR": str(tmp_path / "logs")}
            with subprocess.Popen([sys.executable, "-c", SLEEP], env=settings) as child:
                try:
                    with pytest.raises(StackError, match="an emulator that is already running") as caught:
                        emulator.require_free(port)
                finally:
                    child.kill()
        assert f"MUSTER_STATE_DIR={tmp_path}" in str(caught.value.fix)

    def test_a_taken_port_is_an_error_that_names_the_option(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(StackError, match=rf"Port {port} of 127\.0\.0\.1 is taken") as caught:
                emulator.require_free(port)
            assert "--port" in str(caught.value.fix)

    def test_a_free_port_is_free(self) -> None:
        emulator.require_free(emulator.free_port())


class Recorded(Exception):
    """Raised by a caller that fails right after recording."""


STARTS_AND_HANGS = """
import pathlib, sys, time
from muster.local import emulator

def record(process):
    print(process.pid, flush=True)
    time.sleep(60)

emulator._MODULE = "stand_in"
folder = pathlib.Path(sys.argv[1])
emulator.start(4611, log=folder / "log", folder=folder, record=record)
"""


@pytest.mark.parametrize("proc", ["/proc", "/nowhere"], ids=["linux", "macos"])
class TestStart:
    @pytest.fixture(autouse=True)
    def _proc(self, proc: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulator, "_PROC", Path(proc))

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder with a module in place of the emulator. It records how it runs, prints a word and ends."""
        folder = tmp_path / "tmp"
        folder.mkdir()
        (folder / "stand_in.py").write_text(
            "import json, os, pathlib, sys\n"
            "told = {'environment': dict(os.environ), 'pid': os.getpid(), 'input': sys.stdin.read()}\n"
            "pathlib.Path('told.partial').write_text(json.dumps(told))\n"
            "pathlib.Path('told.partial').rename('told.json')\n"
            "sys.exit('no room')\n"
        )
        monkeypatch.setattr(emulator, "_MODULE", "stand_in")
        return folder

    def start(self, folder: Path, record: Callable[[Process], object] = lambda process: None) -> Process:
        return emulator.start(4611, log=folder / "log", folder=folder, record=record)

    def test_the_emulator_gets_no_setting_of_the_user_and_binds_only_the_loopback(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "PERSIST_STATE", "HTTP_PROXY"):
            monkeypatch.setenv(name, "the user's")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAREAL")
        process = self.start(folder)
        assert wait_for(lambda: not process.alive())
        environment = json.loads((folder / "told.json").read_text())["environment"]
        assert "the user's" not in environment.values()
        assert environment["AWS_ACCESS_KEY_ID"] == "test"
        assert environment["AUTH"] == "true"  # the functions' roles are enforced
        assert environment["BIND_HOST"] == "127.0.0.1"
        assert environment["IOT_MTLS_ENABLED"] == environment["SFTP_ENABLED"] == "0"
        assert environment["GATEWAY_PORT"] == "4611"
        assert environment["TMPDIR"] == str(folder)
        assert not Path(environment["DOCKER_HOST"].removeprefix("unix://")).exists()

    def test_the_error_quotes_the_log_of_an_emulator_that_ends_while_starting(self, folder: Path) -> None:
        process = self.start(folder)
        with pytest.raises(StackError, match="no room"):
            emulator.wait_until_healthy(
                process, f"http://127.0.0.1:{emulator.free_port()}", log=folder / "log"
            )

    def test_it_runs_only_once_it_is_recorded(self, folder: Path) -> None:
        recorded: list[Process] = []

        def record(process: Process) -> None:
            time.sleep(0.5)  # enough for it to begin, if it did not wait
            assert not (folder / "told.json").exists()
            recorded.append(process)

        process = self.start(folder, record)
        assert recorded == [process]
        assert wait_for((folder / "told.json").exists)
        told = json.loads((folder / "told.json").read_text())
        assert (told["pid"], told["input"]) == (process.pid, "")

    @pytest.mark.parametrize("error", [Recorded, KeyboardInterrupt])
    def test_a_caller_that_cannot_record_it_leaves_nothing(
        self, folder: Path, error: type[BaseException]
    ) -> None:
        seen: list[Process] = []

        def record(process: Process) -> None:
            seen.append(process)
            raise error

        with pytest.raises(error):
            self.start(folder, record)
        assert wait_for(lambda: not seen[0].alive())
        assert not (folder / "told.json").exists()

    def test_a_caller_that_is_killed_before_it_has_recorded_it_leaves_nothing(self, folder: Path) -> None:
        program = [sys.executable, "-c", STARTS_AND_HANGS, str(folder)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as caller:
            assert caller.stdout is not None
            process = known(int(caller.stdout.readline()))
            assert process.alive()
            caller.kill()
            assert wait_for(lambda: not process.alive())
        assert not (folder / "told.json").exists()


def test_local_settings_replace_every_setting_of_the_sdk() -> None:
    settings = emulator.local_environment("http://127.0.0.1:4611")
    assert settings["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4611"
    assert settings["AWS_ACCESS_KEY_ID"] == settings["AWS_SECRET_ACCESS_KEY"] == "test"
    assert settings["AWS_CONFIG_FILE"] == settings["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
