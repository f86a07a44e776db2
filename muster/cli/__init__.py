"""The `muster` command."""

import signal
import sys
from types import FrameType
from typing import NoReturn

import typer
from botocore.exceptions import BotoCoreError, ClientError

from muster.cli import demo, messaging, stack
from muster.cli.console import stderr
from muster.errors import MusterError

app = typer.Typer(
    name="muster",
    help="Real-time broadcasts to WebSocket clients, on AWS and on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for title, commands in (("Stack", stack.app), ("Messages", messaging.app), ("Demo", demo.app)):
    for command in commands.registered_commands:
        command.rich_help_panel = title
    app.add_typer(commands)


def main() -> None:
    """Run the command line. Foreseen errors become a sentence and a fix on stderr, never a trace."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        app()
    except MusterError as error:
        _fail(str(error), error.fix, error.exit_code)
    except (BotoCoreError, ClientError) as error:
        _fail(f"AWS: {error}", None, 1)


def _fail(message: str, fix: str | None, exit_code: int) -> NoReturn:
    stderr.print("[red]Error:[/red]", end=" ")
    stderr.print(message, markup=False, highlight=False)
    if fix:
        stderr.print("[green]Fix:[/green]", end=" ")
        stderr.print(fix, markup=False, highlight=False)
    sys.exit(exit_code)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Clean up after `kill` and a closed terminal as after Ctrl-C."""
    raise KeyboardInterrupt
