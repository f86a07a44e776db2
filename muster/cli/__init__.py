"""The `muster` command."""

import errno
import shutil
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer
from botocore.exceptions import BotoCoreError, ClientError

from muster.cli import demo, messaging, stack, verify
from muster.cli.console import stderr
from muster.cli.options import Command
from muster.errors import MusterError

app = typer.Typer(
    name="muster",
    help="Real-time broadcasts to WebSocket clients, on AWS and on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for title, commands in (
    ("Stack", stack.app),
    ("Messages", messaging.app),
    ("Demo", demo.app),
    ("Demo", verify.app),
):
    for command in commands.registered_commands:
        command.rich_help_panel = title
        command.cls = Command
    app.add_typer(commands)

_FIXES = {
    errno.EACCES: "Check its permissions, or name another path.",
    errno.EEXIST: "Name another path.",
    errno.EISDIR: "Name a file, or remove the folder.",
    errno.ENAMETOOLONG: "Name a shorter path.",
    errno.ENOSPC: "Free some space, or name another path.",
    errno.ENOTDIR: "Name a folder, or remove the file.",
    errno.EPERM: "Check its permissions, or name another path.",
    errno.EROFS: "Name a path that can be written to.",
}
_ANY_FIX = "Check the path, its permissions and the space on its disk."
# A path from the command line is not what it has to be.
_USAGE = {errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR}


def main() -> None:
    """Run the command line. Foreseen errors become a sentence and a fix on stderr, never a trace."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        app()
    except MusterError as error:
        _fail(str(error), error.fix, error.exit_code)
    except (BotoCoreError, ClientError) as error:
        _fail(f"AWS: {error}", None, 1)
    except OSError as error:
        _fail(_describe(error), _FIXES.get(error.errno or 0, _ANY_FIX), 2 if error.errno in _USAGE else 1)


def _describe(error: OSError) -> str:
    """Return what is wrong, and with which file if the system names one."""
    if isinstance(error, shutil.Error):  # one of copytree's: a list of (source, target, reason)
        _source, target, reason = error.args[0][0]
        return f"{target}: {reason}."
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}." if error.filename else f"{reason}."


def _fail(message: str, fix: str | None, exit_code: int) -> NoReturn:
    stderr.print("Error:", style="red", end=" ")
    stderr.print(message)
    if fix:
        stderr.print("Fix:", style="green", end=" ")
        stderr.print(fix)
    sys.exit(exit_code)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Clean up after `kill` and a closed terminal as after Ctrl-C."""
    raise KeyboardInterrupt
