"""What a `Client` raises. The tree of all exceptions is drawn in `muster/errors.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muster.errors import MusterError
from muster.faults import parse_faults

FINAL_CODES = frozenset(
    {
        "invalid_json",
        "invalid_message",
        "unknown_action",
        "too_large",
        "forbidden",
        "conflict",
        "token_invalid",
    }
)
"""Error codes that the same message would get again [docs/protocol.md]."""


class ClientError(MusterError):
    """Base of what a `Client` raises. Raised itself when the message or the token cannot be sent."""


class HandshakeRefused(ClientError):
    """The server refused the connection with the HTTP `status`.

    The status is 401 for an invalid token, 403 for a user or a web page that may not connect, 429 for too
    many requests, and 5xx for a failure of the server. `muster logs connect` shows the reason.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"The server refused the connection with HTTP {status}.", fix=_handshake_fix(status))
        self.status = status

    @property
    def transient(self) -> bool:
        """Whether the server may accept the same token later: it throttled the request, or failed."""
        return self.status == 429 or self.status >= 500


class Unreachable(ClientError):
    """No WebSocket could be opened: unknown host, refused connection, TLS failure or timeout."""


class Refused(ClientError):
    """The server answered a message with an error: `reply`, of which `code` and `faults` are parts."""

    def __init__(self, reply: Mapping[str, Any]) -> None:
        self.reply = dict(reply)
        self.code = str(reply.get("code"))
        self.faults = parse_faults(reply.get("faults", ()))
        fix = "; ".join(str(fault) for fault in self.faults)
        super().__init__(f"{reply.get('message')} ({self.code})", fix=fix or None)

    @property
    def transient(self) -> bool:
        """Whether this connection may accept the same message later, because the server failed."""
        return self.code not in FINAL_CODES and self.code != "unknown_connection"


class TooLarge(ClientError):
    """The message is larger than MAX_SENT_BYTES. API Gateway would close the connection."""


class ReplyTimeout(ClientError, TimeoutError):
    """No reply came in time. The server may have acted; sending the same `id` again is safe."""


class ClientClosed(ClientError):
    """The client is used outside its `async with`."""


def _handshake_fix(status: int) -> str:
    match status:
        case 401:
            return "Get a fresh token: this one is missing, expired or not signed for this deployment."
        case 403:
            return (
                "Check that the user exists and is active; `muster logs connect` shows the reason. "
                "Or the address is of a stack that is gone: `muster outputs` prints the current one."
            )
        case 429:
            return "Try again shortly: too many clients are connecting at once."
        case _ if status >= 500:
            return "Try again; if it persists, read the log: `muster logs connect`."
        case _:
            return "Check the address, including its stage."
