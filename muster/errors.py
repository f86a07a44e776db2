"""The exceptions of the package, all of which `muster` exports, and those that belong to no other module.

    MusterError                     one sentence, and a `fix` that says what to do
    ├── OutputsError                there is no stack to use, or its outputs are unreadable
    ├── BundleError                 the Lambda bundle cannot be built
    ├── TerraformError              Terraform or its provider is missing, or a run failed
    │   └── TerraformStalled        a run made no progress and was stopped
    ├── StackError                  the local stack cannot be started, stopped or found
    ├── TokenError                  no token can be issued for this deployment
    ├── BroadcastError              a broadcast cannot be started or followed; raised itself when AWS fails
    │   ├── InvalidName             Step Functions does not accept the name; also a ValueError
    │   ├── InvalidRequest          the request is not JSON, because of NaN for example; also a ValueError
    │   ├── IdempotencyConflict     the name was used for a different broadcast
    │   ├── UnknownBroadcast        there is no such execution
    │   ├── BroadcastFailed         the execution ended without a receipt; has error, cause and execution
    │   │   └── InvalidBroadcast    the request was refused; has every fault
    │   └── BroadcastTimeout        no receipt in time; also a TimeoutError
    ├── ClientError                 a client failed; raised itself when a message or token cannot be sent
    │   ├── HandshakeRefused        the server refused the connection; has the HTTP status
    │   ├── Unreachable             no WebSocket could be opened at that address
    │   ├── Refused                 the server answered a message with an error; has code and faults
    │   ├── TooLarge                the message is larger than API Gateway accepts
    │   ├── ReplyTimeout            no reply came in time; also a TimeoutError
    │   └── ClientClosed            the client is not open
    ├── NotReceived                 a test's message did not arrive in time; also an AssertionError
    ├── DemoFailed                  a step of `muster demo` failed
    └── UnsafeTarget                `muster verify` refuses to run, because it could reach real users

The command line prints the sentence and the fix on stderr, without a stack trace, and exits with `exit_code`.
"""

from typing import ClassVar


class MusterError(Exception):
    """Base of all. `message` says what is wrong, and `fix` what to do about it, if that is known.

    `str(error)` contains both, so a log and a traceback show them too.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\nFix: {self.fix}" if self.fix else self.message


class OutputsError(MusterError):
    """There is no stack to use, or the given Terraform outputs cannot be read."""

    exit_code = 2


class BundleError(MusterError):
    """The Lambda bundle cannot be built."""


class TerraformError(MusterError):
    """Terraform or its AWS provider is missing, or a run failed. The message contains Terraform's own."""


class TerraformStalled(TerraformError):
    """A run made no progress and was stopped, because an answer from AWS was lost."""


class StackError(MusterError):
    """The local stack cannot be started, stopped or found."""


class DemoFailed(MusterError):
    """A step of `muster demo` failed."""
