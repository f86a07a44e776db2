"""An emulator that loses an answer: `up` notices, and starts afresh once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muster import Stack
from muster.errors import TerraformStalled
from muster.local import emulator
from muster.local.emulator import Process
from tests.support import ROOT

SECONDS = 180
"""No start takes longer."""

Lose = Callable[[int], None]


class Steps:
    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def detail(self, text: str) -> None:
        pass


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lose:
    """Have the emulators lose this many answers to CreateFunction."""
    losses = tmp_path / "losses"
    start = emulator.start

    def start_losing(port: int, *, settings: dict[str, str], **options: Any) -> Process:
        return start(port, settings={**settings, "PYTHONPATH": str(ROOT), "LOSSES": str(losses)}, **options)

    monkeypatch.setattr(emulator, "start", start_losing)
    monkeypatch.setattr(emulator, "_MODULE", "tests.support.swallowing")

    def lose(answers: int) -> None:
        losses.write_text("answer\n" * answers)

    return lose


def test_up_starts_afresh_when_an_answer_is_lost(tmp_path: Path, lose: Lose) -> None:
    lose(1)
    steps = Steps()
    stack = Stack(tmp_path / "stack", port=0, progress=steps)
    began = time.monotonic()
    try:
        stack.up()
        assert time.monotonic() - began < SECONDS
        (afresh,) = [step for step in steps.steps if step.startswith("Starting again on a new emulator")]
        assert "no progress for 45 s" in afresh
        assert "aws_lambda_function" in afresh
    finally:
        stack.down()


def test_up_fails_with_a_fix_when_answers_stay_lost(tmp_path: Path, lose: Lose) -> None:
    lose(99)
    stack = Stack(tmp_path / "stack", port=0)
    began = time.monotonic()
    try:
        with pytest.raises(TerraformStalled, match="second attempt") as caught:
            stack.up()
        assert time.monotonic() - began < SECONDS
        assert "Run `muster up` again" in str(caught.value.fix)
        assert stack.status().phase == "down"
    finally:
        stack.down()
