"""What tests wait for, without a stack."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from muster.errors import MusterError
from muster.testing import NotReceived, Users, _Mailbox, refusal_reason


class Scripted(_Mailbox[str]):
    """Letters arrive one batch a look."""

    def __init__(self, *batches: list[str]) -> None:
        super().__init__("finn")
        self._batches = list(batches)

    def _fetch(self, seconds: float) -> list[str]:
        return self._batches.pop(0) if self._batches else []


def test_messages_that_do_not_match_stay_for_later_calls_in_order() -> None:
    box = Scripted(["a", "b"], ["c"])
    assert box.receive(lambda letter: letter == "c") == "c"
    assert [box.receive(), box.receive()] == ["a", "b"]


def test_a_missing_message_fails_the_test_and_counts_those_that_do_not_match() -> None:
    with pytest.raises(AssertionError, match=r"^No message reached finn within 0.05 s\.$"):
        Scripted().receive(timeout=0.05)
    with pytest.raises(NotReceived, match=r"within 0.05 s\. Messages that do not match: 2\.$"):
        Scripted(["a"], ["b"]).receive(lambda letter: letter == "c", timeout=0.05)


class Deployment:
    """Outputs whose clients answer with one role, and with one line of the function connect."""

    def __init__(self) -> None:
        self.function_names = {"connect": "muster-connect"}
        self.log_groups = {"connect": "/aws/lambda/muster-connect"}
        self.users_table = "users"

    def resource(self, service: str) -> Any:
        return SimpleNamespace(Table=lambda name: SimpleNamespace(put_item=lambda Item: None))

    def client(self, service: str) -> Any:
        variables = {"ROLES": json.dumps({"warden": {"actions": []}})}
        line = json.dumps({"message": "connection refused", "userId": "finn", "reason": "inactive"})
        return SimpleNamespace(
            get_function_configuration=lambda FunctionName: {"Environment": {"Variables": variables}},
            filter_log_events=lambda **options: {"events": [{"message": line}]},
        )


def test_a_user_gets_only_a_role_that_the_deployment_defines() -> None:
    deployment: Any = Deployment()
    assert Users(deployment).add("warden").role == "warden"
    with pytest.raises(MusterError, match=r"does not define the role 'firefighter'[^$]*warden"):
        Users(deployment).add("firefighter")


def test_the_reason_of_a_refused_handshake_is_in_the_log_of_connect() -> None:
    deployment: Any = Deployment()
    assert refusal_reason(deployment, "finn", 0) == "inactive"
