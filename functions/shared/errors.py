"""Everything that can be refused, as one tree.

    MusterError
    ├── SettingsError            the function's environment is wrong
    ├── KeysUnavailable          no token can be verified now; a client tries again
    ├── TokenRefused             the handshake's or renewal's token does not hold
    ├── UserRefused              the token holds, but its user may not connect
    ├── OriginRefused            the handshake comes from a web page of another site
    ├── UnknownConnection        the server holds no live row for this connection
    ├── InvalidMessage           a client's frame or a broadcast request is malformed
    │   ├── InvalidJson
    │   ├── TooLarge
    │   └── UnknownAction
    ├── Forbidden                the sender's role may not do this
    └── Conflict                 the same message id was used for a different message

`reply` is the only place where an error becomes what a client reads; `status` answers a handshake.
Clients get fixed sentences and faults about their own input; causes go to the log.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One thing wrong with an input.

    `pointer` is the RFC 6901 JSON pointer of the value ("" is the whole input), `problem` says what is wrong
    with it and `fix` what to send instead.
    """

    pointer: str
    problem: str
    fix: str


class MusterError(Exception):
    """Base of everything the functions refuse; `sentence` is safe to show to a client."""

    code = "internal"
    status = 500
    sentence = "Something went wrong on the server; try again."
    closes = False
    """Whether the connection is closed after the client was told."""

    def __init__(self, detail: str = "", faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail or self.sentence)
        self.faults = tuple(faults)


class SettingsError(MusterError):
    """The environment of the function misses values or holds unusable ones; the detail names them all."""


class KeysUnavailable(MusterError):
    """The keys that verify tokens cannot be read; the detail says why. Refusals would turn clients away."""


class TokenRefused(MusterError):
    """`reason` is for the log, such as missing, expired or signature; `tokens.REASONS` has them."""

    code = "token_invalid"
    status = 401
    sentence = "The token was refused; get a fresh one and try again."

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UserRefused(MusterError):
    """`reason` is for the log: unknown, inactive, or which attribute of the row breaks which rule."""

    code = "forbidden"
    status = 403
    closes = True
    sentence = "This user may not connect; ask an administrator."

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class OriginRefused(MusterError):
    """The handshake's Origin is none of the allowed ones; the detail is the Origin, for the log."""

    code = "forbidden"
    status = 403
    sentence = "This site may not connect; ask an administrator."


class UnknownConnection(MusterError):
    """The connection's row is gone, has expired, or is unusable; the detail says why, for the log."""

    code = "unknown_connection"
    status = 410
    closes = True
    sentence = "The server no longer knows this connection; reconnect with a valid token."


class InvalidMessage(MusterError):
    """The input breaks its schema; `faults` lists every break."""

    code = "invalid_message"
    status = 400
    sentence = "The message does not follow its schema; see faults."


class InvalidJson(InvalidMessage):
    """The frame is not a JSON object."""

    code = "invalid_json"
    sentence = 'The message is not a JSON object; send {"action": ...} as text.'


class TooLarge(InvalidMessage):
    """The message cannot be carried in one frame."""

    code = "too_large"
    status = 413
    sentence = "The message is too large; send less, or a link to the rest."


class UnknownAction(InvalidMessage):
    """The frame names no action that exists."""

    code = "unknown_action"
    sentence = "The action does not exist; see faults."


class Forbidden(MusterError):
    """The sender's role does not allow the action."""

    code = "forbidden"
    status = 403
    sentence = "Your role may not do this; see faults."


class Conflict(MusterError):
    """The client used a message id again, for another message or for one whose broadcast failed."""

    code = "conflict"
    status = 409
    sentence = "This id was used before, for a different message or for one that failed; use a new id."


def reply(error: Exception, reply_to: str | None) -> dict[str, Any]:
    """The `server-error` message that answers the client message `reply_to` with `error`."""
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
    """The code of an error that AWS answered with; empty for one of the way there, such as a time-out.

    An answer may hold no code, and botocore's time-outs have a `response` that is None.
    """
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
