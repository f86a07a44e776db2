"""How long-running work tells its caller what it is doing."""

from typing import Protocol


class Progress(Protocol):
    """Receives what happens, as text for people. Implementations must not raise."""

    def step(self, text: str) -> None:
        """Begin a new stage: "Applying Terraform"."""

    def detail(self, text: str) -> None:
        """Tell where the running stage is: "12/57 aws_sqs_queue.offline". Replaces the previous detail."""


class Silent:
    """A `Progress` that says nothing: the default of the library."""

    def step(self, text: str) -> None:
        """Ignore it."""

    def detail(self, text: str) -> None:
        """Ignore it."""
