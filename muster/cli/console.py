"""How the commands print: results on stdout, everything about the work itself on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.status import Status

stdout = Console(soft_wrap=True)
stderr = Console(stderr=True, soft_wrap=True)

_QUIET_SECONDS = 15.0


class ConsoleProgress:
    """A `Progress` on stderr: a spinner on a terminal; elsewhere a line a step and signs of life."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._step = ""
        self._began = self._printed = time.monotonic()

    def step(self, text: str) -> None:
        """Print how long the previous step took, and begin the next."""
        self.finish()
        self._step, self._began = text, time.monotonic()
        self._status.update(f"{text}...")
        if not stderr.is_terminal:
            self._print(f"{text}...")

    def detail(self, text: str) -> None:
        """Show it beside the spinner, or once in a while as a line."""
        self._status.update(f"{self._step}... [dim]{text}[/dim]")
        if not stderr.is_terminal and time.monotonic() - self._printed > _QUIET_SECONDS:
            self._print(f"  {text}")

    def finish(self) -> None:
        """Leave the current step behind as a line with its duration."""
        if self._step and stderr.is_terminal:
            with suppress(OSError):
                stderr.print(
                    f"[green]✓[/green] {self._step} [dim]{time.monotonic() - self._began:.1f} s[/dim]"
                )
        self._step = ""

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        with suppress(OSError):  # a terminal that has gone away must not stop a clean-up
            stderr.print(text, highlight=False, markup=False)


@contextmanager
def progress() -> Iterator[ConsoleProgress]:
    """Show progress while the block runs; its last step counts as done unless the block raises."""
    with stderr.status("") as status:
        shown = ConsoleProgress(status)
        yield shown
        shown.finish()
