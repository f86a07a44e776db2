"""How long-running work reports to its caller."""

from typing import Protocol


class Progress(Protocol):
    """Receives progress as text for people. Implementations must not raise."""

    def step(self, text: str) -> None:
        """Begin a new stage: "Applying Terraform"."""

    def detail(self, text: str) -> None:
        """Replace the detail of the current stage: "12/57 aws_sqs_queue.offline"."""


class Silent:
    """A `Progress` that prints nothing: the default of the library."""

    def step(self, text: str) -> None:
        """Ignore it."""

    def detail(self, text: str) -> None:
        """Ignore it."""
