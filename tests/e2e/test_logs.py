"""`muster logs` prints what functions and state machines logged."""

import io
import json
import zipfile
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from muster import Stack
from tests.support.commands import finish, muster, start
from tests.support.deployment import Deployment, unique
from tests.support.sockets import websocket
from tests.support.waiting import until


@pytest.fixture
def state_dir(stack: Stack) -> dict[str, str]:
    return {"MUSTER_STATE_DIR": str(stack.state_dir)}


@pytest.fixture
def crashing_connect(stack: Stack, deployment: Deployment) -> Iterator[str]:
    """Deploy a `connect` that fails before it parses anything; yields its reason."""
    functions: Any = deployment.outputs.client("lambda")
    name, reason = deployment.outputs.function_names["connect"], unique("broken")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("functions/__init__.py", "")
        file.writestr("functions/connect.py", f"def handler(event, context): raise RuntimeError({reason!r})")
    functions.update_function_code(FunctionName=name, ZipFile=archive.getvalue())
    try:
        yield reason
    finally:
        whole = (stack.state_dir / "bundle" / "functions.zip").read_bytes()
        functions.update_function_code(FunctionName=name, ZipFile=whole)


def _refused(deployment: Deployment, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as refused, websocket(deployment, **options):
        pass
    return int(refused.value.response.status_code)


def _logged(name: str, text: str, state_dir: dict[str, str]) -> str:
    """The output of `muster logs NAME` once it contains `text`."""

    def shown() -> str:
        code, printed, said = muster("logs", name, **state_dir)
        assert code == 0, said
        return printed if text in printed else ""

    return until(shown, f"{text} in the log of {name}", 20)


def test_reason_of_a_refused_handshake(deployment: Deployment, state_dir: dict[str, str]) -> None:
    user_id = unique("nobody")

    assert _refused(deployment, token=deployment.token(user_id)) == HTTPStatus.FORBIDDEN

    line = next(line for line in _logged("connect", user_id, state_dir).splitlines() if user_id in line)
    assert " connect " in line


def test_crash_in_connect(deployment: Deployment, crashing_connect: str, state_dir: dict[str, str]) -> None:
    user_id = deployment.user().user_id

    assert _refused(deployment, token=deployment.token(user_id)) >= HTTPStatus.INTERNAL_SERVER_ERROR

    assert f"RuntimeError: {crashing_connect}" in _logged("connect", crashing_connect, state_dir)


def test_follow_prints_what_is_written_later(deployment: Deployment, state_dir: dict[str, str]) -> None:
    user_id = unique("nobody")
    following = start("logs", "--follow", "--json", "--since", "1s", "connect", **state_dir)
    try:
        assert following.stdout is not None
        _refused(deployment, token=deployment.token(user_id))
        events = (json.loads(line) for line in following.stdout)
        event = next(event for event in events if user_id in event["message"])
        assert event["name"] == "connect"
    finally:
        following.terminate()
        finish(following)


def test_every_function_and_state_machine_has_a_log(
    deployment: Deployment, state_dir: dict[str, str]
) -> None:
    assert set(deployment.outputs.log_groups) == {*deployment.outputs.function_names, "broadcast", "fanout"}

    code, _, said = muster("logs", "--since", "1s", **state_dir)

    assert code == 0, said
