"""The record of a local stack on disk: what runs, and its Terraform outputs as JSON.

`muster.outputs` reads it to find the running stack, so this module imports nothing that needs `Outputs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from muster.errors import StackError
from muster.local import emulator
from muster.local.emulator import Process

Phase = Literal["down", "starting", "ready", "destroying"]

RECORD = "stack.json"
PARTIAL_RECORD = f"{RECORD}.partial"


@dataclass(frozen=True)
class Record:
    """What was last written about a stack. `process` is None when the emulator is not the stack's own."""

    phase: Phase
    endpoint_url: str | None = None
    process: Process | None = None
    outputs: Mapping[str, Any] | None = None

    def running(self) -> bool:
        """Check the recorded process, because another program may have taken the port since."""
        if self.process:
            return self.process.alive()
        return self.endpoint_url is not None and emulator.healthy(self.endpoint_url)


def read(state_dir: Path) -> Record:
    """Return the record, of the phase "down" without a file. Raises `StackError` for a damaged file.

    Another version of Muster may have written it, so only the phase, endpoint and process are required.
    """
    path = state_dir / RECORD
    try:
        document = json.loads(path.read_text())
        process = document["process"] and Process(document["process"]["pid"], document["process"]["started"])
        return Record(document["phase"], document["endpoint_url"], process, document.get("outputs"))
    except FileNotFoundError:
        return Record("down")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StackError(f"{path} is damaged: {error}.", fix=f"Remove {state_dir}.") from error


def write(state_dir: Path, record: Record) -> None:
    """Replace the file whole, so that a reader never sees half of one."""
    partial = state_dir / PARTIAL_RECORD
    partial.write_text(json.dumps(asdict(record), indent=2))
    partial.replace(state_dir / RECORD)
