"""A `deliver` that dies with its runtime, for `Variants.function` to pack.

A batch with one of these connections kills the process that runs it, until the epoch second T:

    killed-until-T-...      half a second after the batch began: some of it is posted, some is under way
    out-of-memory-until-T-...   at once, by the signal that the kernel sends
"""

import os
import signal
import threading
import time
from typing import Any

from functions import deliver


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Do what the ids say, and the rest as deployed."""
    for connection in event["connections"]:
        fate, found, until = connection["connectionId"].rpartition("-")[0].partition("-until-")
        if found and time.time() < float(until):
            if fate == "killed":
                threading.Timer(0.5, os._exit, [1]).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)
    result: dict[str, Any] = deliver.handler(event, context)
    return result
