"""The demo's script: which users connect, what is sent, and whom each broadcast addresses.

The addressees follow from the users alone, independently of how the stack finds its audiences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from muster.broadcaster import MessageType
from muster.local.seed import SHELTERS, USERS, User

FEWEST_CLIENTS = 6
"""One of each role, and a second client of one user."""


@dataclass(frozen=True)
class Step:
    """One broadcast of the demo. `sender` is the user whose client sends it; None starts an execution."""

    type: MessageType
    scope: str
    target: Mapping[str, Any]
    sender: str | None = None
    shelter_id: str | None = None

    @property
    def via(self) -> Literal["execution", "client"]:
        """How the broadcast starts."""
        return "client" if self.sender else "execution"


def choose_users(clients: int) -> list[User]:
    """Return the user of each client. A fifth of the clients are the second ones of their users.

    The seeded active users come first, one of each role in turn. Then follow as many residents and responders
    as needed, in both shelters and in none. The last user has one client.
    """
    users = _seeded_in_turn()
    doubled = clients // 5
    wanted = clients - doubled
    places: list[str | None] = [*(shelter.shelter_id for shelter in SHELTERS), None]
    extra = [(role, place) for role in ("resident", "first_responder") for place in places]
    for number in range(wanted - len(users)):
        role, place = extra[number % len(extra)]
        users.append(User(f"demo-{number + 1:03}", role, place))
    users = users[:wanted]
    return users[:doubled] + users


def _seeded_in_turn() -> list[User]:
    """Return the first active user of each role, then the second of each, and so on."""
    by_role: dict[str, list[User]] = {}
    for user in USERS:
        if user.active:
            by_role.setdefault(user.role, []).append(user)
    largest = max(len(members) for members in by_role.values())
    return [
        members[rank]
        for rank in range(largest)
        for members in reversed(by_role.values())
        if rank < len(members)
    ]


def script(users: Sequence[User]) -> list[Step]:
    """Return a broadcast to each scope by execution, and one of each type by a client that may send it.

    The first broadcast starts the Lambdas. Its time is shown, but no limit applies to it.
    """
    first = {user.role: user for user in reversed(users)}
    resident, responder = first["resident"].user_id, first["first_responder"].user_id
    operator, shelter = first["shelter_operator"].user_id, first["shelter_operator"].shelter_id
    overlap = {"roles": ["first_responder"], "shelters": [shelter], "users": [responder, resident]}
    return [
        Step("broadcast", "all, cold", {"all": True}),
        Step("broadcast", "all", {"all": True}),
        Step("alert", "role", {"roles": ["first_responder"]}),
        Step("broadcast", "user", {"users": [resident]}),
        Step("shelter_update", "shelter", {"shelters": [shelter]}, shelter_id=shelter),
        Step("alert", "overlapping", overlap),
        Step("broadcast", "all", {"all": True}, sender=first["coordinator"].user_id),
        Step("alert", "role", {"roles": ["resident"]}, sender=responder),
        Step("shelter_update", "shelter", {"shelters": [shelter]}, sender=operator, shelter_id=shelter),
    ]


def is_addressed(user: User, target: Mapping[str, Any]) -> bool:
    """Return whether a target includes a user."""
    return (
        "all" in target
        or user.role in target.get("roles", ())
        or user.shelter_id in target.get("shelters", ())
        or user.user_id in target.get("users", ())
    )
