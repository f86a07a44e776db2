"""The built package in a bare environment and an empty folder: the stack, the commands, the pytest plugin.

One stack serves all of it. What docs/testing.md shows is run as it is written.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import ROOT

PAGE = ROOT / "docs" / "testing.md"

SECONDS = 300
"""Longer than an installation or a start takes on a busy machine."""

_NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "build", ".muster", ".*_cache", ".hypothesis", ".terraform*"
)

MORE = """
import boto3
import pytest
from websockets.sync.client import connect

from muster import Broadcaster
from muster.client import HandshakeRefused
from muster.testing import NotReceived


@pytest.mark.usefixtures("muster_environment")
def test_a_service_with_clients_of_its_own_finds_the_stack(muster_outputs, muster_user, muster_client):
    user = muster_user(shelter_id="a-shelter")
    client = muster_client(user)
    machine = muster_outputs.broadcast_state_machine_arn
    broadcaster = Broadcaster(machine, boto3.client("stepfunctions"))
    execution = broadcaster.start("broadcast", {"shelters": ["a-shelter"]}, {"text": "Soup"})
    assert client.receive()["payload"] == {"text": "Soup"}
    assert broadcaster.wait(execution, timeout=60).offline == 0
    with pytest.raises(NotReceived, match=f"^No message reached {user.user_id} within 0.2 s.$"):
        client.receive(timeout=0.2)


def test_an_own_client_connects_with_a_token(muster_outputs, muster_token, muster_user):
    with connect(muster_outputs.websocket_url + "?Authorization=" + muster_token(muster_user())) as socket:
        socket.send('{"action": "ping", "id": "one"}')
        assert '"one"' in socket.recv(timeout=10)


def test_a_user_who_is_not_active_is_refused(muster_user, muster_client):
    with pytest.raises(HandshakeRefused):
        muster_client(muster_user(active=False))
"""


@dataclass
class Folder:
    """An empty folder, with an environment beside it that has the built wheel and nothing of the checkout."""

    path: Path
    bin: Path

    def start(self, program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a program of the environment in the folder; no variable points to a checkout or a stack."""
        foreign = ("AWS_", "MUSTER_OUTPUTS", "MUSTER_STATE_DIR", "MUSTER_TOKEN", "PYTHON", "PYTEST_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        cache = {"XDG_CACHE_HOME": str(self.path.parent / "cache")}
        return subprocess.Popen(
            [str(self.bin / program), *arguments],
            cwd=self.path,
            env={**kept, **cache, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, program: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run a program to its end; return its exit code, its output and its errors."""
        with self.start(program, *arguments, **environment) as process:
            printed, said = process.communicate(timeout=SECONDS)
        return process.returncode, printed, said

    def muster(self, *arguments: str) -> str:
        """Run a `muster` that has to succeed; return what it printed."""
        code, printed, said = self.run("muster", *arguments)
        assert code == 0, said
        return printed


def build(source: Path, out: Path) -> Path:
    """Build the sdist, and the wheel from it."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a checkout that also contains secrets of its user."""
    folder = tmp_path_factory.mktemp("package")
    checkout = folder / "checkout"
    shutil.copytree(ROOT, checkout, ignore=_NOT_COPIED)
    for name in ("terraform.tfstate", "prod.auto.tfvars", "backend_override.tf", "prod.tfvars.json"):
        (checkout / "terraform" / name).write_text("secret")
    (checkout / "muster" / ".env").write_text("secret")
    return build(checkout, folder / "dist")


@pytest.fixture(scope="module")
def folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """An empty folder in which the stack of the installed wheel is up."""
    base = tmp_path_factory.mktemp("elsewhere")
    venv.create(base / "venv", with_pip=True)
    folder = Folder(base / "empty", base / "venv" / "bin")
    folder.path.mkdir()
    # Not the folder's own cache: the packages were downloaded before.
    install = [
        str(folder.bin / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        f"{wheel}[local]",
        "pytest",
        "pytest-xdist",
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=SECONDS, cwd=folder.path)
    try:
        folder.muster("up", "--port", "0")
        yield folder
    finally:
        folder.run("muster", "down")


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as opened:
        return opened.namelist()


def test_wheel_contains_the_sources_and_no_files_of_the_checkouts_user(wheel: Path) -> None:
    shipped = {name for name in names(wheel) if name.startswith("muster/_sources/")}
    expected = [
        *(ROOT / "functions").rglob("*.py"),
        ROOT / "functions" / "requirements.txt",
        *(ROOT / "schemas").glob("*.schema.json"),
        *(ROOT / "statemachines").glob("*.asl.json"),
        *(ROOT / "terraform").glob("*.tf"),
        *(ROOT / "terraform" / "modules").rglob("*.tf"),
    ]
    assert shipped == {f"muster/_sources/{path.relative_to(ROOT).as_posix()}" for path in expected}
    with zipfile.ZipFile(wheel) as opened:
        assert not [name for name in opened.namelist() if opened.read(name) == b"secret"]


def test_wheel_built_without_an_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    """As `pip install /path/to/muster` makes it, without an sdist in between."""
    checkout = wheel.parents[1] / "checkout"
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(tmp_path),
        str(checkout),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    (straight,) = tmp_path.glob("*.whl")
    assert sorted(names(straight)) == sorted(names(wheel))


@pytest.mark.stack
def test_broadcast_from_an_empty_folder_reaches_a_listener(folder: Folder) -> None:
    assert sorted(path.name for path in folder.path.iterdir()) == [".muster"]
    sent = ["--to", "user:responder-finn", "--payload", '{"text": "Water"}', "--wait", "--json"]
    wait = ["--user", "responder-finn", "--count", "1", "--timeout", "60"]
    with folder.start("muster", "listen", *wait) as listener:
        # It has no way to say that it is connected: the first broadcast that reaches it tells.
        for _ in range(20):
            receipt = json.loads(folder.muster("broadcast", *sent))["receipt"]
            if receipt["delivered"]:
                break
        printed, _ = listener.communicate(timeout=SECONDS)
    assert json.loads(printed)["payload"] == {"text": "Water"}
    assert receipt["delivered"] == 1


@pytest.mark.stack
def test_plugin_serves_the_tests_of_another_folder(folder: Folder) -> None:
    """With warnings as errors and two workers, on the stack that is up."""
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if name != "conftest.py":  # which shows other roles
            (folder.path / name).write_text(text)
    (folder.path / "test_more.py").write_text(MORE)

    strict = ["-W", "error", "--strict-markers", "--strict-config", "-p", "no:cacheprovider"]
    code, printed, said = folder.run(
        "python", "-m", "pytest", "-n", "2", "--muster-keep", *strict, PYTHONDEVMODE="1"
    )

    assert code == 0, printed + said
    assert "6 passed" in printed
    assert f"muster down --state-dir {folder.path / '.muster'}" in printed
    assert folder.run("muster", "status")[0] == 0, "the stack stays up"


@pytest.mark.stack
def test_installed_package_builds_for_aws_and_writes_only_where_it_may(folder: Folder) -> None:
    package = folder.bin.parent / "lib"
    before = {
        path for path in package.rglob("*") if path.suffix not in {".pyc"} and path.name != "__pycache__"
    }
    folder.muster("build", "--out", "bundle")
    assert (folder.path / "bundle" / "functions.zip").stat().st_size > 10_000
    assert "Usage" in folder.muster("--help")

    code, printed, said = folder.run("muster", "terraform", "version")
    assert (code, printed) == (1, "")
    assert "muster terraform -chdir=DIR" in said
    assert "Terraform v" in folder.muster("terraform", "-chdir=.", "version")

    after = {
        path for path in package.rglob("*") if path.suffix not in {".pyc"} and path.name != "__pycache__"
    }
    assert after == before, "nothing is written into the installed package"
