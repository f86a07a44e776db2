"""What clients may send: by role, once per id, and to whom it goes."""

import pytest

from tests.support.deployment import Deployment, Json, pointers
from tests.support.fixtures import Open
from tests.support.waiting import until

ACTIONS = {
    "admin": {"alert", "broadcast", "shelter_update"},
    "coordinator": {"alert", "broadcast", "shelter_update"},
    "shelter_operator": {"shelter_update"},
    "first_responder": {"alert"},
    "resident": set(),
}


def _message(action: str, shelter: str) -> Json:
    update = {"shelterId": shelter} if action == "shelter_update" else {}
    return {"action": action, "target": {"shelters": [shelter]}, "payload": {"text": "hello"}, **update}


@pytest.mark.parametrize("action", ["alert", "broadcast", "shelter_update"])
@pytest.mark.parametrize("role", ACTIONS)
def test_role_sends_what_it_may_and_nothing_else(
    deployment: Deployment, open_socket: Open, shelter: str, role: str, action: str
) -> None:
    sender = open_socket(deployment.user(role, shelter))

    answer = sender.ask(_message(action, shelter))

    if action in ACTIONS[role]:
        assert answer["type"] == "ack"
        broadcast = deployment.outputs.broadcast_state_machine_arn.replace(":stateMachine:", ":execution:")
        receipt = deployment.receipt(f"{broadcast}:{answer['execution']}")
        assert (receipt["id"], receipt["type"], receipt["delivered"]) == (answer["id"], action, 1)
        (message,) = sender.heard()
        assert (message["id"], message["type"]) == (answer["id"], action)
        assert message["sender"] == {"userId": sender.user.user_id, "role": role}
        assert message["payload"] == {"text": "hello"}
        assert message.get("shelterId") == (shelter if action == "shelter_update" else None)
    else:
        assert (answer["type"], answer["code"]) == ("error", "forbidden")
        assert pointers(answer) == {"/action"}
        assert deployment.queued(f"shelter#{shelter}") == []
        assert sender.heard() == []


@pytest.mark.parametrize("assigned", [True, False])
def test_shelter_operator_updates_no_other_shelter(
    deployment: Deployment, open_socket: Open, shelter: str, assigned: bool
) -> None:
    own = f"{shelter}-own" if assigned else None
    sender = open_socket(deployment.user("shelter_operator", own))

    answer = sender.ask(_message("shelter_update", shelter))

    assert (answer["type"], answer["code"]) == ("error", "forbidden")
    assert pointers(answer) == {"/shelterId"}
    assert deployment.queued(f"shelter#{shelter}") == []


@pytest.mark.parametrize("target", [{"all": True}, {"roles": ["resident"]}, {"users": ["u1"]}])
def test_shelter_operator_cannot_update_another_audience(
    deployment: Deployment, open_socket: Open, shelter: str, target: Json
) -> None:
    sender = open_socket(deployment.user("shelter_operator", shelter))

    answer = sender.ask({**_message("shelter_update", shelter), "target": target})

    assert (answer["type"], answer["code"]) == ("error", "forbidden")
    assert pointers(answer) == {"/target"}
    assert sender.heard() == []


def test_shelter_update_goes_to_its_shelter_unless_a_target_is_given(
    deployment: Deployment, open_socket: Open, shelter: str
) -> None:
    sender = open_socket(deployment.user("coordinator"))
    inside, outside = open_socket(deployment.user("resident", shelter)), open_socket(deployment.user())
    update = {"action": "shelter_update", "shelterId": shelter, "payload": {"free": 3}}

    first = sender.ask(update)["id"]
    second = sender.ask({**update, "target": {"users": [outside.user.user_id]}})["id"]

    assert inside.next()["id"] == first
    assert outside.next()["id"] == second
    assert [inside.heard(), outside.heard(), sender.heard()] == [[], [], []]


def test_sending_again_with_the_same_id_is_one_broadcast(
    deployment: Deployment, open_socket: Open, shelter: str
) -> None:
    sender = open_socket(deployment.user("first_responder"))
    receiver = open_socket(deployment.user("resident", shelter))
    message = {**_message("alert", shelter), "id": "mine-1"}

    acks = [sender.ask(message) for _ in range(3)]

    assert acks == [acks[0]] * 3
    assert receiver.next()["id"] == acks[0]["id"]
    assert receiver.heard() == []
    assert len(deployment.queued(f"shelter#{shelter}")) == 1


def test_id_of_another_message_is_a_conflict_and_of_another_user_is_not(
    deployment: Deployment, open_socket: Open, shelter: str
) -> None:
    sender, other = (open_socket(deployment.user("first_responder")) for _ in range(2))
    message = {**_message("alert", shelter), "id": "mine-1"}

    first = sender.ask(message)
    conflict = sender.ask({**message, "payload": {"text": "something else"}})
    others = other.ask(message)

    assert (conflict["type"], conflict["code"]) == ("error", "conflict")
    assert others["id"] != first["id"]
    queued = until(
        lambda: len(found := deployment.queued(f"shelter#{shelter}")) > 1 and found, "both messages"
    )
    assert {item["messageId"] for item in queued or ()} == {first["id"], others["id"]}
