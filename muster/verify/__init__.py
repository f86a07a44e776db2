"""Verifies that a deployment keeps its promises, on AWS or on the local stack, without reaching anybody.

    report = await verify(outputs, SecretTokens(TokenIssuer.from_outputs(outputs)))

A run makes its own users, connections and broadcasts, and compares the results with what Muster promises and
AWS documents. It removes everything that it made, also when it is cancelled. docs/verify.md describes each
check.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from muster.errors import MusterError
from muster.outputs import Outputs
from muster.progress import Progress, Silent
from muster.tokens import TokenIssuer
from muster.verify import account, broadcasts, closing, durations, handshakes, reconnects
from muster.verify.check import Check, carry_out
from muster.verify.probe import Probe
from muster.verify.rows import Broken, CannotTell, Report, Row
from muster.verify.targets import Consent, UnsafeTarget, choose_users, shared_users_table
from muster.verify.tokens import CommandTokens, SecretTokens, Tokens

__all__ = [
    "CHECKS",
    "Broken",
    "CannotTell",
    "Check",
    "CommandTokens",
    "Consent",
    "Probe",
    "Report",
    "Row",
    "SecretTokens",
    "Tokens",
    "UnsafeTarget",
    "live_connections",
    "shared_users_table",
    "tokens_for",
    "verify",
]

CHECKS: tuple[Check, ...] = (
    account.CHECKS
    + handshakes.CHECKS
    + broadcasts.CHECKS
    + reconnects.CHECKS
    + durations.CHECKS
    + closing.CHECKS
)
"""Every check, in the order in which they run."""

FEWEST_CLIENTS = 3
"""Two that get a broadcast to users, one of them in the shelter, and one that must not get it."""


def tokens_for(outputs: Outputs, command: str | None = None) -> Tokens:
    """Return the source of a run's tokens: the command, or the deployment's secret."""
    if command is not None:
        return CommandTokens(command)
    if outputs.jwt_secret_arn is None:
        raise MusterError(
            "This deployment verifies tokens with the keys of an identity provider.",
            fix="Pass --token-command with a command that prints a token for the user in MUSTER_USER_ID.",
        )
    return SecretTokens(TokenIssuer.from_outputs(outputs))


async def verify(
    outputs: Outputs,
    tokens: Tokens,
    *,
    clients: int = 20,
    consent: Consent | None = None,
    only: Collection[str] = (),
    progress: Progress | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Report:
    """Carry out all checks, or `only` those named and the ones that they need; return a row for each.

    A failed check is a row, not an error. Raises MusterError when the run cannot make its users, or may not
    without consent.
    """
    shown = progress or Silent()
    users = await choose_users(tokens, clients, shown)
    probe = await asyncio.to_thread(Probe, outputs, tokens, users, shown, consent or Consent())
    report = Report(probe.run)
    try:
        async with probe:
            for check in chosen(only, probe.consent):
                shown.step(f"{check.name}: {check.promise.removesuffix('.')}")
                row = await carry_out(check, probe, report.rows)
                report.rows.append(row)
                on_row(row)
    except BaseException:
        for name in probe.left:
            shown.step(f"Not removed: {name}")
        raise
    report.left = probe.left
    return report


def chosen(only: Collection[str], consent: Consent) -> list[Check]:
    """Return the named checks and those that they need, or all checks when none is named.

    Checks that need a consent which was not given are left out, or refused when they are named.
    """
    given = {"scopes": bool(consent.scopes), "idle": consent.slow}
    if refused := [name for name in only if not given.get(name, True)]:
        raise MusterError(
            f"The check {refused[0]} needs your consent.",
            fix="Add --scopes all,role for the check scopes, or --slow for idle.",
        )
    if not only:
        return [check for check in CHECKS if given.get(check.name, True)]
    by_name = {check.name: check for check in CHECKS}
    if unknown := [name for name in only if name not in by_name]:
        raise MusterError(f"There is no check {', '.join(unknown)}.", fix=f"Use one of {', '.join(by_name)}.")
    needed = set(only)
    for check in reversed(CHECKS):  # a check needs only earlier ones
        if check.name in needed:
            needed.update(check.needs)
    return [check for check in CHECKS if check.name in needed]


def live_connections(outputs: Outputs) -> dict[str, int]:
    """Count all live connections ("all"), and those of each role. Reads the whole connections table."""
    pages = (
        outputs.client("dynamodb")
        .get_paginator("scan")
        .paginate(
            TableName=outputs.connections_table,
            FilterExpression="#ttl > :now",
            ProjectionExpression="#role",
            ExpressionAttributeNames={"#ttl": "ttl", "#role": "role"},
            ExpressionAttributeValues={":now": {"N": str(int(time.time()))}},
        )
    )
    counts = {"all": 0}
    for page in pages:
        for row in page["Items"]:
            role = row.get("role", {}).get("S", "")
            counts["all"] += 1
            counts[role] = counts.get(role, 0) + 1
    return counts
