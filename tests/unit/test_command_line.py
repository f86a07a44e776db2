"""The `muster` command as a whole: what it offers, and how it fails."""

import signal
import sys
from pathlib import Path

import pytest

from muster import cli


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
    commands = ["up", "down", "status", "build", "terraform", "token", "listen", "send", "broadcast", "demo"]
    places = [shown.index(f"│ {command} ") for command in commands]
    assert places == sorted(places)


def test_errors_are_a_sentence_and_a_fix_on_stderr_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "token", "admin-ada", "--state-dir", str(tmp_path)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: There is no stack to talk to")
    assert "Fix: Run `muster up`" in err
    assert "Traceback" not in err


def test_status_of_nothing_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "status", "--state-dir", str(tmp_path)) == 1
    assert "The local stack is down" in capsys.readouterr().out
