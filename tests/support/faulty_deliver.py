"""A `deliver` whose connections fail as their ids say. `Variants.function` packs it.

    crash-...        the invocation raises
    crash-once-...   the first invocation raises
    hang-...         the invocation outlives its timeout
    error-...        API Gateway answers 500, every time
    busy-...         API Gateway answers 429 once, then takes the message
    too-large-...    API Gateway answers 413
    closed-...       API Gateway answers 410
    anything else    API Gateway takes the message

The API Gateway is a small HTTP server inside the Lambda, so that it is reached wherever the Lambda runs.
"""

import os
import tempfile
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

STATUSES = {"error": [500], "busy": [429, 200], "too-large": [413], "closed": [410]}
"""What each attempt is answered, the last one for ever."""


class Connections(BaseHTTPRequestHandler):
    """Answers `POST <endpoint>/@connections/<id>`."""

    protocol_version = "HTTP/1.1"
    attempts: ClassVar[dict[str, int]] = {}

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        connection_id = unquote(self.path.rpartition("/")[2])
        attempt = self.attempts[connection_id] = self.attempts.get(connection_id, 0) + 1
        statuses = STATUSES.get(connection_id.rpartition("-")[0], [200])
        self.send_response(statuses[min(attempt, len(statuses)) - 1])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing into the Lambda's log."""


@cache
def _serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Connections)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["CONNECTIONS_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}/live"


def _is_first(connection_id: str) -> bool:
    """Return whether this is the first call for the id in any process: the emulator ends those that raise."""
    try:
        Path(tempfile.gettempdir(), connection_id).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Fail as the ids say; otherwise do what the deployed function does."""
    for connection in event["connections"]:
        fault = connection["connectionId"].rpartition("-")[0]
        if fault == "crash" or (fault == "crash-once" and _is_first(connection["connectionId"])):
            raise RuntimeError("crash requested by the connection id")
        if fault == "hang":
            time.sleep(60)
    _serve()
    from functions import deliver  # noqa: PLC0415 - in Lambda it reads its environment when it is imported

    # A test of a timeout uses a short one; half of it still is for posting.
    deliver.REPORT_MILLISECONDS = min(
        deliver.REPORT_MILLISECONDS, context.get_remaining_time_in_millis() // 2
    )
    result: dict[str, Any] = deliver.handler(event, context)
    return result
