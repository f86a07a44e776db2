"""Whom a run of `muster verify` may address: its own users and shelter, and others only with consent."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from muster.aws import error_code
from muster.errors import MusterError
from muster.local.seed import User
from muster.outputs import Outputs
from muster.progress import Progress
from muster.verify.aws import name_prefix
from muster.verify.tokens import Tokens

PREFIX = "muster-verify"
"""Begins the name of everything that a run makes."""

MOST_NAMED = 100
"""Users in a target [docs/protocol.md]. A target with more fails the execution, which raises an alarm."""


class UnsafeTarget(MusterError):
    """The target would reach people who are not users of this run."""


@dataclass(frozen=True)
class Consent:
    """What the operator agreed to beyond the run's own users. The default is nothing."""

    scopes: frozenset[str] = frozenset()
    """Of `all` and `role`: broadcasts that reach real people."""
    subscribers: bool = False
    """Other subscriptions of the offline topic may get the notifications of the check `fallback`."""
    slow: bool = False
    """Carry out checks that wait for minutes."""
    users: bool = False
    """The run may write its users into a users table that other systems may read."""


@dataclass
class RunUsers:
    """The users of a run. `listeners` are connected throughout; few checks use each of the others."""

    run: str
    """The name of the run, which begins the names of all that it makes."""
    shelter: str
    listeners: list[User]
    sender: User
    away: User
    hard: User
    absent: User
    nested: User
    inactive: User
    unknown: User

    @property
    def stored(self) -> list[User]:
        """The users that get a row in the users table: all but `unknown`."""
        return [*self.listeners, self.sender, self.away, self.hard, self.absent, self.nested, self.inactive]


async def choose_users(tokens: Tokens, clients: int, progress: Progress) -> RunUsers:
    """Name a run, and choose its users by their tokens, one after another.

    A token command may be slow: a cancellation waits for one call of it at most.
    """
    run = f"{PREFIX}-{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(4)}"
    shelter = f"{run}-shelter"
    progress.step("Getting tokens")

    async def user(name: str, *, sheltered: bool = False, active: bool = True) -> User:
        user_id = await asyncio.to_thread(tokens.user, f"{run}-{name}")
        return User(user_id, PREFIX, shelter if sheltered else None, active)

    return RunUsers(
        run=run,
        shelter=shelter,
        listeners=[await user(f"{number:03}", sheltered=number % 2 == 0) for number in range(clients)],
        sender=await user("sender"),
        away=await user("away"),
        hard=await user("hard"),
        absent=await user("absent"),
        nested=await user("nested"),
        inactive=await user("inactive", active=False),
        unknown=await user("unknown"),
    )


def shared_users_table(outputs: Outputs) -> str | None:
    """Return why other systems may read the rows of the users table. None: only Muster reads them."""
    table = outputs.users_table
    if table != f"{name_prefix(outputs)}-users":
        return f"The users table {table} is your own"
    try:
        described = outputs.client("dynamodb").describe_table(TableName=table)["Table"]
    except ClientError as error:
        return f"It is unknown whether the users table {table} has a stream ({error_code(error)})"
    if described.get("StreamSpecification", {}).get("StreamEnabled"):
        return f"The users table {table} has a stream"
    return None


def check_target(target: Mapping[str, Any], users: RunUsers, consent: Consent) -> None:
    """Raise `UnsafeTarget` unless the target names only users and the shelter of this run."""
    allowed = {"users", "shelters"}
    if "all" in consent.scopes:
        allowed.add("all")
    if "role" in consent.scopes:
        allowed.add("roles")
    if len(target.get("users", ())) > MOST_NAMED:
        raise UnsafeTarget(f"A target names at most {MOST_NAMED} users.", fix="Name fewer.")
    own = {user.user_id for user in users.stored}
    strangers = [scope for scope in target if scope not in allowed]
    strangers += [name for name in target.get("users", ()) if name not in own]
    strangers += [name for name in target.get("shelters", ()) if name != users.shelter]
    if strangers or not target:
        raise UnsafeTarget(
            f"This target may reach people who are not users of this run: {', '.join(strangers) or 'empty'}.",
            fix="Address only the run's own users and shelter.",
        )
