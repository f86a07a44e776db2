"""How the commands print: results on stdout, progress and errors on stderr.

Text is printed unchanged: `[/x]`, `:secret:` and `[dev]` in a path, an ARN or an error of Terraform are not
markup. Style comes only from `style=` and from `rich.text.Text`.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

stdout = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)

_QUIET_SECONDS = 15.0


def echo_json(value: object, *, indent: int | None = None) -> None:
    """Print JSON for programs. Characters that stdout cannot encode are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # a lone surrogate, or a stdout that is not UTF-8
        text = json.dumps(value, indent=indent)
    typer.echo(text)


class ConsoleProgress:
    """A `Progress` on stderr: a spinner on a terminal, and elsewhere a line for each step."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._step = ""
        self._began = self._printed = time.monotonic()

    def step(self, text: str) -> None:
        """Finish the previous step, and begin the next."""
        self.finish()
        self._step, self._began = text, time.monotonic()
        self._status.update(Text(f"{text}..."))
        if not stderr.is_terminal:
            self._print(f"{text}...")

    def detail(self, text: str) -> None:
        """Show the detail beside the spinner, or as a line every 15 s."""
        self._status.update(Text.assemble(f"{self._step}... ", (text, "dim")))
        if not stderr.is_terminal and time.monotonic() - self._printed > _QUIET_SECONDS:
            self._print(f"  {text}")

    def finish(self) -> None:
        """Print the current step with its duration."""
        if self._step and stderr.is_terminal:
            seconds = f"{time.monotonic() - self._began:.1f} s"
            with suppress(OSError):
                stderr.print(Text.assemble(("✓", "green"), f" {self._step} ", (seconds, "dim")))
        self._step = ""

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        with suppress(OSError):  # a closed terminal must not stop a clean-up
            stderr.print(text)


@contextmanager
def progress() -> Iterator[ConsoleProgress]:
    """Show progress while the block runs. The last step counts as finished unless the block raises."""
    with stderr.status(Text()) as status:
        shown = ConsoleProgress(status)
        yield shown
        shown.finish()
