"""Whom a run of `muster verify` may address: its own users and shelter, and others only with consent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from muster.errors import MusterError
from muster.local.seed import User

PREFIX = "muster-verify"
"""Begins the name of everything that a run makes."""

SENDER = {"service": PREFIX}

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
    """Other subscriptions of the offline topic may get the two notifications of the check `fallback`."""
    slow: bool = False
    """Carry out checks that wait for minutes."""


@dataclass
class RunUsers:
    """The users of a run. `listeners` are connected throughout; few checks use each of the others."""

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


def check_target(target: Mapping[str, Any], users: RunUsers, shelter: str, consent: Consent) -> None:
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
    strangers += [name for name in target.get("shelters", ()) if name != shelter]
    if strangers or not target:
        raise UnsafeTarget(
            f"This target may reach people who are not users of this run: {', '.join(strangers) or 'empty'}.",
            fix="Address only the run's own users and shelter.",
        )
