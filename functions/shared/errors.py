"""The errors of the functions, as one tree.

    MusterError
    ├── SettingsError            the function's environment is wrong
    ├── KeysUnavailable          no token can be verified now; the client should retry
    ├── TokenRefused             the token of a handshake or renewal is not valid
    ├── UserRefused              the token is valid, but its user may not connect
    ├── OriginRefused            the handshake comes from a web page of another site
    ├── UnknownConnection        there is no live row for this connection
    ├── InvalidMessage           a client's frame or a broadcast request is malformed
    │   ├── InvalidJson
    │   ├── TooLarge
    │   └── UnknownAction
    ├── Forbidden                the sender's role may not do this
    └── Conflict                 the same message id was used for a different message

`reply` is the only place that turns an error into a client message; `status` answers a handshake. Clients get
fixed sentences and the faults of their own input. Causes are only logged.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One thing wrong with an input.

    `pointer` is the RFC 6901 JSON pointer of the value ("" for the whole input), `problem` says what is wrong
    with it, and `fix` says what to send instead.
    """

    pointer: str
    problem: str
    fix: str


class MusterError(Exception):
    """Base of all errors; `sentence` is safe to show to a client, `detail` is for the log."""

    code = "internal"
    status = 500
    sentence = "Something went wrong on the server; try again."
    closes = False
    """Whether the connection is closed after the client got the error."""

    def __init__(self, detail: str = "", faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail or self.sentence)
        self.faults = tuple(faults)


class SettingsError(MusterError):
    """Values of the function's environment are missing or invalid; the detail names them all."""


class KeysUnavailable(MusterError):
    """The keys that verify tokens cannot be read; the detail says why.

    The code is `internal`, so that clients retry with the same token.
    """


class TokenRefused(MusterError):
    """The token is not valid; `reason` is for the log, such as missing, expired or signature."""

    code = "token_invalid"
    status = 401
    sentence = "The token was refused; get a fresh one and try again."

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UserRefused(MusterError):
    """The user may not connect; `reason` is for the log: unknown, inactive, or what is wrong with the row."""

    code = "forbidden"
    status = 403
    closes = True
    sentence = "This user may not connect; ask an administrator."

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class OriginRefused(MusterError):
    """The handshake's `Origin` is not allowed; the detail is the origin."""

    code = "forbidden"
    status = 403
    sentence = "This site may not connect; ask an administrator."


class UnknownConnection(MusterError):
    """The connection's row is missing, expired or invalid; the detail says what is wrong with the row."""

    code = "unknown_connection"
    status = 410
    closes = True
    sentence = "The server no longer knows this connection; reconnect with a valid token."


class InvalidMessage(MusterError):
    """The input does not follow its schema; `faults` lists the reasons."""

    code = "invalid_message"
    status = 400
    sentence = "The message does not follow its schema; see faults."


class InvalidJson(InvalidMessage):
    """The frame is not a JSON object."""

    code = "invalid_json"
    sentence = 'The message is not a JSON object; send {"action": ...} as text.'


class TooLarge(InvalidMessage):
    """The message does not fit into one frame."""

    code = "too_large"
    status = 413
    sentence = "The message is too large; send less, or a link to the rest."


class UnknownAction(InvalidMessage):
    """The frame's action is missing or unknown."""

    code = "unknown_action"
    sentence = "The action does not exist; see faults."


class Forbidden(MusterError):
    """The sender's role does not allow the action."""

    code = "forbidden"
    status = 403
    sentence = "Your role may not do this; see faults."


class Conflict(MusterError):
    """The client reused a message id, for another message or for one whose broadcast failed."""

    code = "conflict"
    status = 409
    sentence = "This id was used before, for a different message or for one that failed; use a new id."


def reply(error: Exception, reply_to: str | None) -> dict[str, Any]:
    """The `server-error` message that answers the client's frame with the id `reply_to`."""
    shown = error if isinstance(error, MusterError) else MusterError()
    message: dict[str, Any] = {
        "type": "error",
        "code": shown.code,
        "message": shown.sentence,
        "replyTo": reply_to,
    }
    if shown.faults:
        message["faults"] = [asdict(fault) for fault in shown.faults]
    return message


def aws_code(error: Exception) -> str:
    """The code of an error response from AWS; empty if there was no response, such as after a timeout.

    A response may have no code, and `response` is None in botocore's timeouts.
    """
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
