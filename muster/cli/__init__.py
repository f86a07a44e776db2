"""The `muster` command."""

import errno
import re
import shutil
import signal
import sys
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from botocore.exceptions import BotoCoreError, ClientError

from muster.cli import demo, deployment, logs, messaging, stack, verify
from muster.cli.console import stderr
from muster.cli.options import Command
from muster.errors import MusterError

app = typer.Typer(
    name="muster",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for title, commands in (
    ("Stack", stack.app),
    ("Deployment", deployment.app),
    ("Deployment", logs.app),
    ("Messages", messaging.app),
    ("Demo", demo.app),
    ("Demo", verify.app),
):
    for command in commands.registered_commands:
        command.rich_help_panel = title
        command.cls = Command
    app.add_typer(commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"muster {version('muster')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Real-time broadcasts to WebSocket clients, on AWS and on this machine."""


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


_UsageError: Any = typer.BadParameter.__mro__[1]  # typer exports only the class below it

# What typer's sentences about usage say, in ours. The rest is ours already.
_USAGE_SENTENCES = (
    (r"Value error, (.*)", r"\1"),
    (r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", r"There are too many arguments: \1."),
    (r"No such command '(.*?)'\.", r"There is no command \1."),
    (r"No such option: (\S+)", r"There is no option \1."),
    (r"Option '(.*)' requires .*", r"\1 needs a value."),
    (r"Option '(.*)' does not take a value\.", r"\1 takes no value."),
    (r"Input should be a valid integer.*", r"write a whole number."),
    (r"could not convert string to float.*", r"write a number of seconds, 0 or more."),
    (r"Input should be greater than or equal to (.*)", r"write \1 or more."),
    (r"Input should be less than or equal to (.*)", r"write \1 or less."),
    (r"'(.*)' is not one of (.*)\.", r"\1 is none of \2."),
    (r"(?:file|dir|path|File|Directory|Path) '(.*)' is a (file|directory)\.", r"\1 is a \2."),
)


def main() -> None:
    """Run the command line. Foreseen errors become a sentence and a fix on stderr, never a trace."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        sys.exit(app(standalone_mode=False))
    except typer.Abort:
        sys.exit(1)
    except _UsageError as error:
        _refuse_usage(error)
    except MusterError as error:
        _fail(error.message, error.fix, error.exit_code)
    except (BotoCoreError, ClientError) as error:
        _fail(f"AWS: {error}", "Check the credentials, the region, and that the deployment is up.", 1)
    except OSError as error:
        _fail(_describe(error), _FIXES.get(error.errno or 0, _ANY_FIX), 2 if error.errno in _USAGE else 1)


def _refuse_usage(error: Any) -> NoReturn:
    """Say what is wrong with the command line, and where its right form is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    command = error.ctx.command_path if error.ctx else "muster"
    param = getattr(error, "param", None)
    name = ""
    if param:
        option = param.opts[0].startswith("-")
        name = max(param.opts, key=len) if option else param.metavar or param.name.upper()
    message = error.message
    for theirs, ours in _USAGE_SENTENCES:
        message = re.sub(rf"{theirs}\Z", ours, message, flags=re.DOTALL)
    if type(error).__name__ == "MissingParameter":
        message = f"{name} is missing."
    elif name:
        message = f"{name}: {message}"
    if similar := getattr(error, "possibilities", None):
        message += f" Did you mean {similar[0]}?"
    _fail(message, f"See `{command} --help`.", error.exit_code)


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
