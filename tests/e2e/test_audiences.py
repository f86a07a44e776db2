"""Who receives a broadcast: each connection of the audience once, and no other."""

from collections.abc import Callable

import pytest

from muster import Broadcaster
from tests.support.deployment import VARIABLES, Deployment, Json, unique
from tests.support.fixtures import Figure, Open

RECEIPT_SECONDS = 60

PAYLOAD = {"text": "Überflutung 🌊 am Nordtor", "level": 3, "nested": {"list": [1, None, True]}}


CROWD = {
    "admin": 1,
    "coordinator": 2,
    "responder-north": 1,
    "responder-south": 1,
    "resident-south": 1,
    "resident": 1,
}
"""How many connections each person has."""


class Crowd:
    """People of several roles, in two shelters and in none, all of them connected."""

    def __init__(self, deployment: Deployment, open_socket: Open) -> None:
        self.north, self.south = unique("north"), unique("south")
        people = {
            "admin": ("admin", None),
            "coordinator": ("coordinator", self.north),
            "responder-north": ("first_responder", self.north),
            "responder-south": ("first_responder", self.south),
            "resident-south": ("resident", self.south),
            "resident": ("resident", None),
        }
        self.users = {name: deployment.user(*kind) for name, kind in people.items()}
        self.sockets = {
            name: [open_socket(self.users[name]) for _ in range(connections)]
            for name, connections in CROWD.items()
        }

    def ids(self, *names: str) -> list[str]:
        return [self.users[name].user_id for name in names]

    def heard(self) -> dict[str, list[list[Json]]]:
        """Return what each connection of each person has heard."""
        return {name: [socket.heard() for socket in sockets] for name, sockets in self.sockets.items()}


EVERYBODY = set(CROWD)
RESPONDERS = {"responder-north", "responder-south"}

TARGETS: list[tuple[str, Callable[[Crowd], Json], set[str]]] = [
    ("all", lambda crowd: {"all": True}, EVERYBODY),
    ("a-role", lambda crowd: {"roles": ["first_responder"]}, RESPONDERS),
    ("roles", lambda crowd: {"roles": ["first_responder", "admin"]}, RESPONDERS | {"admin"}),
    ("a-user", lambda crowd: {"users": crowd.ids("coordinator")}, {"coordinator"}),
    ("users", lambda crowd: {"users": crowd.ids("coordinator", "resident")}, {"coordinator", "resident"}),
    ("a-shelter", lambda crowd: {"shelters": [crowd.north]}, {"coordinator", "responder-north"}),
    (
        "shelters",
        lambda crowd: {"shelters": [crowd.north, crowd.south]},
        EVERYBODY - {"admin", "resident"},
    ),
    (
        "overlapping",
        lambda crowd: {
            "roles": ["first_responder", "admin"],
            "shelters": [crowd.north],
            "users": [*crowd.ids("admin", "coordinator", "responder-south", "resident"), unique("nobody")],
        },
        EVERYBODY - {"resident-south"},
    ),
]


@pytest.mark.parametrize(("target", "audience"), [pytest.param(*case[1:], id=case[0]) for case in TARGETS])
def test_every_connection_of_the_audience_receives_it_once_and_no_other(
    deployment: Deployment,
    broadcaster: Broadcaster,
    open_socket: Open,
    target: Callable[[Crowd], Json],
    audience: set[str],
) -> None:
    crowd = Crowd(deployment, open_socket)

    execution = broadcaster.start("broadcast", target(crowd), PAYLOAD, sender={"service": "registry"})
    receipt = broadcaster.wait(execution, RECEIPT_SECONDS)

    message = {
        "type": "broadcast",
        "id": receipt.id,
        "sentAt": receipt.to_dict()["startedAt"],
        "sender": {"service": "registry"},
        "payload": PAYLOAD,
    }
    assert crowd.heard() == {
        name: [[message] if name in audience else []] * connections for name, connections in CROWD.items()
    }
    # Others may hold connections of the same roles, of which a test knows nothing.
    assert receipt.delivered >= sum(CROWD[name] for name in audience)
    assert receipt.failed == 0


def test_more_connections_than_a_page_and_a_batch_are_all_reached(
    deployment: Deployment, broadcaster: Broadcaster, open_socket: Open, shelter: str, figure: Figure
) -> None:
    sockets = [open_socket(deployment.user("resident", shelter)) for _ in range(20)]

    execution = broadcaster.start("alert", {"shelters": [shelter]}, PAYLOAD)
    receipt = broadcaster.wait(execution, RECEIPT_SECONDS)

    assert [[message["id"] for message in socket.heard()] for socket in sockets] == [[receipt.id]] * 20
    assert (receipt.audience, receipt.delivered, receipt.retries) == (20, 20, 0)
    assert receipt.pages == 1 + 20 // VARIABLES["page_size"]
    figure("Broadcast to 20 clients, from its start to its receipt", receipt.duration_ms / 1000, 3)
