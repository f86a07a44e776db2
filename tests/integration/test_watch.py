"""`muster up --watch`: what is saved in a checkout is live within seconds."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster import Stack
from muster.local import repository
from muster.local.watch import FOLDERS, watch
from tests.support import ROOT
from tests.support.deployment import Deployment
from tests.support.fixtures import Figure
from tests.support.waiting import until

LIVE_SECONDS = 3.0


class Watched:
    """A copy of the checkout, watched for the stack under test."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.told: list[tuple[str, str | None]] = []

    def tell(self, text: str, fix: str | None) -> None:
        self.told.append((text, fix))

    def replace(self, name: str, old: str, new: str) -> float:
        """Save a file with `old` replaced; return when."""
        path = self.checkout / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return time.monotonic()


@pytest.fixture
def watched(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".terraform*")
        )
    cache = repository.cache_dir()
    monkeypatch.setattr(repository, "root", lambda: tmp_path)
    monkeypatch.setattr(repository, "cache_dir", lambda: cache)
    watched, stop = Watched(tmp_path), threading.Event()
    thread = threading.Thread(target=watch, args=(stack, watched.tell, stop))
    thread.start()
    try:
        until(lambda: watched.told, "watching", 60)
        yield watched
    finally:
        stop.set()
        thread.join()
        monkeypatch.undo()
        stack.update_functions()
        stack.up()


def answer(deployment: Deployment) -> str:
    """What `default` answers, or how it fails, on an event that no version knows."""
    functions: Any = deployment.outputs.client("lambda")
    name = deployment.outputs.function_names["default"]
    return str(functions.invoke(FunctionName=name, Payload=b"{}")["Payload"].read().decode())


def test_saved_files_are_live_in_time(
    stack: Stack, deployment: Deployment, watched: Watched, figure: Figure
) -> None:
    code = watched.checkout / "functions" / "default.py"
    before = code.read_text()

    code.write_text("def handler(event, context):\n    return 'saved'\n")
    saved = time.monotonic()
    until(lambda: "saved" in answer(deployment), "the saved function", 30)
    figure("saved function is live", time.monotonic() - saved, LIVE_SECONDS)

    code.write_text("def handler(event, context:\n")
    until(lambda: watched.told[-1][1], "the syntax error", 30)
    assert watched.told[-1][0].startswith("functions/default.py:1: ")
    assert "saved" in answer(deployment)

    code.write_text(before)
    until(lambda: watched.told[-1][1] is None, "the corrected function", 30)

    machines: Any = deployment.outputs.client("stepfunctions")
    arn = deployment.outputs.fanout_state_machine_arn
    definition = json.loads((watched.checkout / "statemachines" / "fanout.asl.json").read_text())
    saved = watched.replace("statemachines/fanout.asl.json", definition["Comment"], "Saved just now")

    def definition_now() -> str:
        return str(machines.describe_state_machine(stateMachineArn=arn)["definition"])

    until(lambda: "Saved just now" in definition_now(), "the saved state machine", 30)
    figure("saved state machine is live", time.monotonic() - saved, LIVE_SECONDS)
    assert "${" not in definition_now()

    watched.replace("statemachines/fanout.asl.json", "Saved just now", "${nothing}")
    until(lambda: watched.told[-1][1], "the unknown variable", 30)
    assert "uses ${nothing}" in watched.told[-1][0]

    watched.replace("statemachines/fanout.asl.json", "${nothing}", definition["Comment"])
    until(lambda: watched.told[-1][1] is None, "the corrected state machine", 30)

    watched.replace("terraform/outputs.tf", "Log group of each", "The log group of each")
    until(lambda: "Terraform applied" in watched.told[-1][0], "the apply", 150)


def test_up_replaces_code_that_watch_deployed_and_that_is_reverted_since(
    stack: Stack, deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".terraform*")
        )
    (tmp_path / "functions" / "default.py").write_text("def handler(event, context):\n    return 'saved'\n")
    with monkeypatch.context() as patched:
        cache = repository.cache_dir()
        patched.setattr(repository, "root", lambda: tmp_path)
        patched.setattr(repository, "cache_dir", lambda: cache)
        stack.update_functions()
    until(lambda: "saved" in answer(deployment), "the saved function", 30)
    stack.up()
    until(lambda: "saved" not in answer(deployment), "the reverted function", 30)
