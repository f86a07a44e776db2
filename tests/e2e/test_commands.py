"""The commands that talk to a stack, by hand as the README shows them."""

import json

import pytest

from muster import Stack
from tests.deployment import Deployment, unique
from tests.e2e.commands import finish, muster, start
from tests.e2e.conftest import Open
from tests.waiting import until


@pytest.fixture
def state_dir(stack: Stack) -> dict[str, str]:
    """The environment in which commands find the stack under test as they find the one of `muster up`."""
    return {"MUSTER_STATE_DIR": str(stack.state_dir)}


def test_listener_prints_what_is_broadcast(deployment: Deployment, state_dir: dict[str, str]) -> None:
    user_id = deployment.user().user_id
    listener = start("listen", "--user", user_id, "--count", "1", "--timeout", "60", **state_dir)
    until(lambda: deployment.connections_of(user_id), "the listener's connection", 30)

    to, payload = f"user:{user_id}", json.dumps({"text": "Water at the north gate"})
    code, printed, said = muster(
        "broadcast", "--to", to, "--type", "alert", "--payload", payload, "--wait", "--json", **state_dir
    )

    assert code == 0, said
    receipt = json.loads(printed)["receipt"]
    assert (receipt["audience"], receipt["delivered"]) == (1, 1)
    code, printed, said = finish(listener)
    assert code == 0, said
    message = json.loads(printed)
    assert (message["id"], message["type"]) == (receipt["id"], "alert")
    assert message["payload"] == {"text": "Water at the north gate"}


def test_broadcast_shows_its_receipt_as_a_table(state_dir: dict[str, str]) -> None:
    to = f"shelter:{unique('shelter')}"

    code, printed, said = muster("broadcast", "--to", to, "--payload", "{}", "--wait", **state_dir)

    assert code == 0, said
    assert "Receipt" in printed
    assert all(line in printed for line in ("delivered", "gone", "failed", "SNS"))


def test_broadcast_with_the_same_id_twice_is_one(
    deployment: Deployment, open_socket: Open, state_dir: dict[str, str]
) -> None:
    socket = open_socket(deployment.user())
    arguments = ["broadcast", "--to", f"user:{socket.user.user_id}", "--payload", "{}"]
    arguments += ["--id", unique("broadcast"), "--wait", "--json"]

    answers = [muster(*arguments, **state_dir) for _ in range(2)]

    first, again = (json.loads(printed) for _, printed, _ in answers)
    assert (first["alreadyStarted"], again["alreadyStarted"]) == (False, True)
    assert first["receipt"] == again["receipt"]
    assert [message["id"] for message in socket.heard()] == [first["receipt"]["id"]]


def test_token_opens_a_connection_and_send_prints_the_reply(
    deployment: Deployment, state_dir: dict[str, str]
) -> None:
    user_id = deployment.user().user_id

    code, printed, said = muster("token", user_id, **state_dir)
    assert code == 0, said
    token = printed.strip()
    code, printed, said = muster("send", "--token", token, '{"action": "ping", "id": "p-1"}', **state_dir)

    assert code == 0, said
    assert json.loads(printed)["replyTo"] == "p-1"


def test_send_fails_with_the_servers_reason(
    deployment: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against any deployment: its outputs in a file, as `terraform output -json` writes them."""
    outputs = tmp_path_factory.mktemp("outputs") / "outputs.json"
    outputs.write_text(json.dumps(deployment.outputs.to_dict()))
    message = json.dumps({"action": "alert", "target": {"all": True}, "payload": {}})

    code, printed, _ = muster(
        "send", "--user", deployment.user("resident").user_id, message, MUSTER_OUTPUTS=str(outputs)
    )

    assert code == 1
    assert json.loads(printed)["code"] == "forbidden"
