"""A `deliver` whose process can be killed, packed by `Variants.function`.

A batch with one of these connections kills its process:

    killed-...          in the middle of the batch: some posts have a response, and some are waiting for it
    killed-once-...     the same, but only the first time
    out-of-memory-...   immediately, with the signal that the kernel sends
"""

import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

from functions import deliver

UNDER_WAY_SECONDS = 1.5
"""Half of the timeout of a post."""


def _is_first(connection_id: str) -> bool:
    """Whether this is the first call for the connection, in all processes."""
    try:
        Path(tempfile.gettempdir(), connection_id).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Kill the process if an id says so, and call the deployed handler."""
    for connection in event["connections"]:
        fate = connection["connectionId"].rpartition("-")[0]
        if fate == "killed" or (fate == "killed-once" and _is_first(connection["connectionId"])):
            threading.Timer(UNDER_WAY_SECONDS, os._exit, [1]).start()
        elif fate == "out-of-memory":
            os.kill(os.getpid(), signal.SIGKILL)
    result: dict[str, Any] = deliver.handler(event, context)
    return result
