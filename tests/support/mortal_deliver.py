"""A `deliver` that dies with its runtime, for `Variants.function` to pack.

A batch with one of these connections kills the process that runs it:

    killed-...          well after the batch began: some of it is posted, and some waits for an answer
    killed-once-...     likewise, the first time
    out-of-memory-...   at once, by the signal that the kernel sends
"""

import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

from functions import deliver

UNDER_WAY_SECONDS = 1.5
"""Half of what a post that is not answered takes."""


def _is_first(connection_id: str) -> bool:
    """Tell whether this is asked for the first time, in any process."""
    try:
        Path(tempfile.gettempdir(), connection_id).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Do what the ids say, and the rest as deployed."""
    for connection in event["connections"]:
        fate = connection["connectionId"].rpartition("-")[0]
        if fate == "killed" or (fate == "killed-once" and _is_first(connection["connectionId"])):
            threading.Timer(UNDER_WAY_SECONDS, os._exit, [1]).start()
        elif fate == "out-of-memory":
            os.kill(os.getpid(), signal.SIGKILL)
    result: dict[str, Any] = deliver.handler(event, context)
    return result
