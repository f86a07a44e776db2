"""What a check is, and how it becomes a row of the report."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from botocore.exceptions import BotoCoreError, ClientError
from websockets.exceptions import ConnectionClosed, InvalidStatus

from muster.aws import error_code
from muster.errors import MusterError

if TYPE_CHECKING:
    from muster.verify.probe import Probe

Result = Literal["held", "failed", "unknown"]

DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthorizationError",
        "AuthorizationErrorException",
        "UnauthorizedOperation",
    }
)


class Broken(Exception):
    """The deployment does not do what the check's promise says: what was seen, and the fix."""

    def __init__(self, seen: str, fix: str) -> None:
        super().__init__(seen)
        self.fix = fix


class CannotTell(Exception):
    """Nothing follows about the promise: why, and what would make it known."""

    def __init__(self, why: str, fix: str | None = None) -> None:
        super().__init__(why)
        self.fix = fix


@dataclass(frozen=True)
class Check:
    """One promise and the function that tries it.

    `run` returns what it saw when the promise held. Otherwise it raises `Broken` or `CannotTell`. `needs`
    names checks without which this one makes no sense.
    """

    name: str
    promise: str
    source: str
    run: Callable[[Probe], Awaitable[str]]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What became of a check. `detail` is what was seen, or why nothing can be told."""

    name: str
    promise: str
    source: str
    result: Result
    detail: str
    fix: str | None
    seconds: float


@dataclass
class Report:
    """All rows of a run, and every resource that it could not remove, with the reason."""

    run: str
    rows: list[Row] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def result(self) -> Result:
        """`failed` if anything failed or was left behind, else `unknown` if any row is, else `held`."""
        results = {row.result for row in self.rows}
        if "failed" in results or self.left:
            return "failed"
        return "unknown" if "unknown" in results or not self.rows else "held"


async def carry_out(check: Check, probe: Probe, rows: list[Row]) -> Row:
    """Run a check. Whatever it meets becomes a row; nothing but cancellation leaves."""
    began = time.monotonic()
    result, detail, fix = await _outcome(check, probe, rows)
    seconds = round(time.monotonic() - began, 2)
    return Row(check.name, check.promise, check.source, result, detail, fix, seconds)


async def _outcome(check: Check, probe: Probe, rows: list[Row]) -> tuple[Result, str, str | None]:
    held = {row.name for row in rows if row.result == "held"}
    if missing := [name for name in check.needs if name not in held]:
        return "unknown", f"It needs {' and '.join(missing)}, which did not hold.", None
    try:
        return "held", await check.run(probe), None
    except Broken as error:
        return "failed", str(error), error.fix
    except CannotTell as error:
        return "unknown", str(error), error.fix
    except ClientError as error:
        code = error_code(error)
        if code in DENIED:
            why = f"These credentials may not call {error.operation_name}."
            return "unknown", why, "Allow what `muster verify --dry-run` lists."
        return "unknown", f"AWS answered {error.operation_name} with {code}.", None
    except BotoCoreError as error:
        return "unknown", f"AWS did not answer: {type(error).__name__}.", None
    except MusterError as error:
        return "failed", str(error.args[0]), error.fix
    except InvalidStatus as error:
        status = error.response.status_code
        return "failed", f"The handshake was answered with {status}.", "Read the log of the connect function."
    except ConnectionClosed as error:
        code = str(error.rcvd.code) if error.rcvd else "without a close frame"
        return "failed", f"The connection was closed: {code}.", "Read the log of the default function."
    except TimeoutError:
        return "failed", "No answer came in time.", "Read the log of the default function."
    except Exception as error:  # an answer of another form ends its own row only
        detail = f"The answer has a form that this version does not know ({type(error).__name__})."
        return "failed", detail, "Use the version of Muster that is deployed."
