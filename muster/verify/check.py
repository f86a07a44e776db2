"""What a check is, and how it becomes a row."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError
from websockets.exceptions import ConnectionClosed, InvalidStatus

from muster.aws import error_code
from muster.errors import MusterError
from muster.verify.probe import Probe
from muster.verify.rows import Broken, CannotTell, Result, Row

DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthorizationError",
        "AuthorizationErrorException",
        "UnauthorizedOperation",
    }
)
"""Error codes of AWS for a missing permission."""

MISSING = frozenset(
    {
        "NonExistentQueue",
        "NotFound",
        "NotFoundException",
        "ResourceNotFoundException",
        "AWS.SimpleQueueService.NonExistentQueue",
        "StateMachineDoesNotExist",
    }
)
"""Codes with which AWS services answer for a resource that does not exist."""


@dataclass(frozen=True)
class Check:
    """One promise, and the function that tests it.

    `run` returns what it saw when the deployment keeps the promise. Otherwise it raises `Broken` or
    `CannotTell`. `needs` names the checks that have to pass before this one can run.
    """

    name: str
    promise: str
    source: str
    run: Callable[[Probe], Awaitable[str]]
    needs: tuple[str, ...] = ()


async def carry_out(check: Check, probe: Probe, rows: list[Row]) -> Row:
    """Run a check and return its row. Only a cancellation is raised: every error becomes a row."""
    began = time.monotonic()
    result, detail, fix = await _outcome(check, probe, rows)
    seconds = round(time.monotonic() - began, 2)
    return Row(check.name, check.promise, check.source, result, detail, fix, seconds)


async def _outcome(check: Check, probe: Probe, rows: list[Row]) -> tuple[Result, str, str | None]:
    held = {row.name for row in rows if row.result == "held"}
    if missing := [name for name in check.needs if name not in held]:
        return "unknown", f"It needs the checks {' and '.join(missing)}, which did not pass.", None
    try:
        return "held", await check.run(probe), None
    except Broken as error:
        return "failed", str(error), error.fix
    except CannotTell as error:
        return "unknown", str(error), error.fix
    except ClientError as error:
        return _refused(error)
    except BotoCoreError as error:
        return "unknown", f"AWS did not answer: {type(error).__name__}.", None
    except MusterError as error:
        if isinstance(error.__cause__, ClientError):  # the library translates errors of AWS
            return _refused(error.__cause__)
        return "failed", str(error.args[0]), error.fix
    except InvalidStatus as error:
        status = error.response.status_code
        return "failed", f"The handshake was answered with {status}.", "Read the log of the connect function."
    except ConnectionClosed as error:
        code = str(error.rcvd.code) if error.rcvd else "without a close frame"
        return "failed", f"The connection was closed: {code}.", "Read the log of the default function."
    except TimeoutError:
        return "failed", "No answer came in time.", "Read the log of the default function."
    except Exception as error:  # an answer of an unknown form fails its own row only
        detail = f"The answer has a form that this version does not know ({type(error).__name__})."
        return "failed", detail, "Use the version of Muster that is deployed."


def _refused(error: ClientError) -> tuple[Result, str, str | None]:
    """Judge an error of AWS: a missing permission says nothing of the deployment, a missing resource does."""
    code = error_code(error)
    answered = f"AWS answered {error.operation_name} with {code}"
    if code in DENIED:
        why = f"These credentials may not call {error.operation_name}."
        return "unknown", why, "Allow what `muster verify --dry-run` lists."
    if code in MISSING:
        why = f"{answered}: the outputs name something that does not exist."
        return "failed", why, "Apply terraform/ again, and export its outputs."
    return "unknown", f"{answered}.", None
