"""How the command line reports an error: a sentence, a fix, and an exit code."""

import errno
import shutil
import sys
from typing import Any, NoReturn

from muster.cli.console import stderr

_FIXES = {
    errno.EACCES: "Check its permissions, or name another path.",
    errno.EEXIST: "Name another path.",
    errno.EISDIR: "Name a file, or remove the folder.",
    errno.ENAMETOOLONG: "Name a shorter path.",
    errno.ENOSPC: "Free some space, or name another path.",
    errno.ENOTDIR: "Name a folder, or remove the file.",
    errno.EPERM: "Check its permissions, or name another path.",
    errno.EROFS: "Name a writable path.",
}
_ANY_FIX = "Check the path, its permissions and the space on its disk."
# The path on the command line is of the wrong kind: a usage error.
_USAGE = {errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR}


def exit_with(exit_code: int, problem: str, fix: str | None) -> NoReturn:
    """Print the problem and the fix on stderr, and exit."""
    stderr.print("Error:", style="red", end=" ")
    stderr.print(problem)
    if fix:
        stderr.print("Fix:", style="green", end=" ")
        stderr.print(fix)
    sys.exit(exit_code)


def refuse_usage(error: Any) -> NoReturn:
    """Report Typer's error about the command line, and exit with 2."""
    problem = error.format_message().replace("Value error, ", "")  # pydantic's words for a ValueError
    command = error.ctx.command_path if error.ctx else "muster"
    exit_with(error.exit_code, problem, f"See `{command} --help`.")


def describe_os_error(error: OSError) -> tuple[str, str, int]:
    """Return the problem, with the file if the system names one, the fix and the exit code."""
    if isinstance(error, shutil.Error):  # copytree collects (source, target, reason)
        _source, target, reason = error.args[0][0]
        return f"{target}: {reason}.", _ANY_FIX, 1
    reason = error.strerror or str(error)
    problem = f"{error.filename}: {reason}." if error.filename else f"{reason}."
    if isinstance(error, ConnectionError | TimeoutError) and not isinstance(error, BrokenPipeError):
        return problem, "Check that the deployment is up, and the network.", 1
    number = error.errno or 0
    return problem, _FIXES.get(number, _ANY_FIX), 2 if number in _USAGE else 1
