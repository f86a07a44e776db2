"""The commands that talk to a stack, by hand as the README shows them."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from muster import Broadcaster, Stack
from muster.broadcaster import UnknownBroadcast
from tests.support.commands import finish, muster, start
from tests.support.deployment import Deployment, unique
from tests.support.fixtures import Open
from tests.support.waiting import until


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


def test_broadcast_that_is_refused_fails_without_wait(state_dir: dict[str, str]) -> None:
    code, printed, said = muster("broadcast", "--to", "role:pilot", "--text", "x", **state_dir)

    assert (code, printed) == (1, "")
    assert "/target/roles/0 is not a role of this deployment" in said


def test_broadcast_warns_of_what_no_table_has(deployment: Deployment, state_dir: dict[str, str]) -> None:
    user = deployment.user("resident", unique("unregistered"))
    ghosts = ["--to", f"shelter:{unique('ghost')}", "--to", f"user:{unique('ghost')}"]
    known = ["--to", "role:resident", "--to", f"shelter:{user.shelter_id}", "--to", f"user:{user.user_id}"]

    code, printed, said = muster("broadcast", *ghosts, *known, "--text", "x", "--json", **state_dir)

    assert code == 0, said
    warnings = json.loads(printed)["warnings"]
    assert [warning.split(" ")[1] for warning in warnings] == ["shelter", "user"]
    assert all("ghost" in warning and warning in said for warning in warnings)


def test_users_shows_who_is_connected(
    deployment: Deployment, open_socket: Open, state_dir: dict[str, str]
) -> None:
    connected, away = deployment.user("resident"), deployment.user("admin", "north")
    open_socket(connected)
    until(lambda: deployment.connections_of(connected.user_id), "the connection", 30)

    code, printed, said = muster("users", "--json", "--limit", "100000", **state_dir)

    assert code == 0, said
    found = {person["id"]: person for person in json.loads(printed)}
    assert found[connected.user_id]["connected"] is True
    assert found[away.user_id] == {
        "id": away.user_id,
        "role": "admin",
        "shelter": "north",
        "active": True,
        "connected": False,
    }


def test_outputs_option_takes_what_outputs_and_status_print(
    tmp_path: Path, state_dir: dict[str, str]
) -> None:
    for command in ("outputs", "status"):
        code, printed, said = muster(command, "--json", **state_dir)
        assert code == 0, said
        path = tmp_path / f"{command}.json"
        path.write_text(printed)
        code, printed, said = muster("token", "admin-ada", "--outputs", str(path))
        assert (code, printed.count(".")) == (0, 2), said


def test_a_publisher_of_two_lines_reaches_the_stack(
    deployment: Deployment, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUSTER_OUTPUTS", raising=False)
    monkeypatch.setenv("MUSTER_STATE_DIR", str(stack.state_dir))
    broadcaster = Broadcaster.from_outputs()
    target = {"users": [deployment.user().user_id]}

    execution = broadcaster.start("alert", target, {"text": "x"}, sender={"service": "gauges"})
    broadcaster.wait_accepted(execution, 30)

    assert broadcaster.wait(execution, 60).offline == 1
    with pytest.raises(UnknownBroadcast):
        broadcaster.wait(broadcaster.execution("never-was"), 60)


def test_an_sdk_with_the_variables_of_env_reaches_the_stack(state_dir: dict[str, str]) -> None:
    code, printed, said = muster("env", **state_dir)
    assert code == 0, said
    program = (
        "import boto3, os; print(boto3.client('stepfunctions').describe_state_machine("
        "stateMachineArn=os.environ['MUSTER_BROADCAST_STATE_MACHINE_ARN'])['name'])"
    )
    script = f"{printed}exec {shlex.quote(sys.executable)} -c {shlex.quote(program)}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("-broadcast"), done.stderr
