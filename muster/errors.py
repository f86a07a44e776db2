"""Every error that Muster raises on purpose.

    MusterError                     one sentence, and a `fix` that says what to do about it
    ├── OutputsError                no stack to talk to, or its outputs are unreadable
    ├── BundleError                 the Lambda bundle cannot be built
    ├── TerraformError              Terraform or its provider is missing, or a run failed
    │   └── TerraformStalled        a run made no progress and was stopped
    └── StackError                  the local stack cannot start, stop or be found

The command line prints the sentence and the fix on stderr and exits with `exit_code`, without a trace.
"""

from typing import ClassVar


class MusterError(Exception):
    """An error meant for people: `message` says what is wrong, `fix` what to do about it, if that is known.

    `str(error)` holds both, so a log and a traceback show them too.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\nFix: {self.fix}" if self.fix else self.message


class OutputsError(MusterError):
    """There is no stack to talk to, or the given Terraform outputs cannot be read."""

    exit_code = 2


class BundleError(MusterError):
    """The Lambda bundle cannot be built."""


class TerraformError(MusterError):
    """Terraform or its AWS provider is missing, or a run failed; the message holds Terraform's own."""


class TerraformStalled(TerraformError):
    """A run made no progress and was stopped: an answer that it waited for was lost."""


class StackError(MusterError):
    """The local stack cannot be started, stopped or found."""
