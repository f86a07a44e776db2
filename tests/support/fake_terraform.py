"""A fake terraform program. It records its calls, and prints what the test scripted."""

import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PLATFORM = "linux_amd64"

_PROGRAM = """\
#!{python}
import json, os, pathlib, signal, sys, time

folder = pathlib.Path({folder!r})
arguments = [argument for argument in sys.argv[1:] if not argument.startswith("-chdir=")]
if arguments == ["version", "-json"]:
    print(json.dumps({{"terraform_version": {version!r}, "platform": {platform!r}}}))
    sys.exit()
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}) + "\\n")
script = json.loads((folder / "script.json").read_text()).get(arguments[0], {{}})

def interrupted(number, frame):
    (folder / "interrupted").touch()
    sys.exit(1)

signal.signal(signal.SIGINT, interrupted)
for line in script.get("lines", []):
    print(line if isinstance(line, str) else json.dumps(line), flush=True)
if script.get("creates"):
    pathlib.Path(script["creates"]).write_text("{{}}")
time.sleep(script.get("seconds", 0))
sys.exit(script.get("exit_code", 0))
"""


class FakeTerraform:
    """Writes the program to `folder`. Put the folder on the PATH to use it."""

    def __init__(self, folder: Path, version: str = "1.11.4") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "terraform"
        program.write_text(
            _PROGRAM.format(python=sys.executable, folder=str(folder), version=version, platform=PLATFORM)
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self._script: dict[str, Any] = {}
        self.says("output", lines=["{}"])

    def says(
        self,
        command: str,
        *,
        lines: Sequence[str | Mapping[str, Any]] = (),
        exit_code: int = 0,
        seconds: float = 0,
        creates: Path | None = None,
    ) -> None:
        """Script a command: print `lines`, write a file, sleep, exit."""
        self._script[command] = {
            "lines": list(lines),
            "exit_code": exit_code,
            "seconds": seconds,
            "creates": creates and str(creates),
        }
        (self.folder / "script.json").write_text(json.dumps(self._script))

    def calls(self, command: str) -> list[dict[str, Any]]:
        """Return all calls of a command so far, each with its arguments and its environment."""
        log = self.folder / "calls.jsonl"
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [call for call in calls if command in call["arguments"]]

    @property
    def was_interrupted(self) -> bool:
        return (self.folder / "interrupted").exists()

    def path(self) -> str:
        """Return a PATH that begins with this program's folder."""
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"


def failure(summary: str, detail: str = "", place: tuple[str, int] | None = None) -> dict[str, Any]:
    """Return an error in the form of Terraform's machine-readable UI."""
    diagnostic: dict[str, Any] = {"severity": "error", "summary": summary, "detail": detail}
    if place:
        diagnostic["range"] = {"filename": place[0], "start": {"line": place[1], "column": 1, "byte": 0}}
    return {"@level": "error", "type": "diagnostic", "diagnostic": diagnostic}


def change(kind: str, address: str, action: str = "create", **more: Any) -> dict[str, Any]:
    """Return a message of an apply. `kind` is apply_start, apply_progress or apply_complete."""
    return {"type": kind, "hook": {"resource": {"addr": address}, "action": action, **more}}


def planned(add: int = 0, change: int = 0, remove: int = 0) -> dict[str, Any]:
    """Return the summary of a plan, the first message of every apply."""
    counts = {"add": add, "change": change, "import": 0, "remove": remove, "operation": "plan"}
    return {"type": "change_summary", "changes": counts}
