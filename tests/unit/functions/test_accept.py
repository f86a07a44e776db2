import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings

from functions import accept
from functions.shared import settings
from functions.shared.messages import (
    ID_AHEAD_SECONDS,
    ID_BEHIND_SECONDS,
    MAX_ENVELOPE_BYTES,
    digest,
    id_time,
    uuid7,
)
from tests.support.functions import ROLES, Context, Hostile, cpu_seconds, hostile, peak_bytes
from tests.support.schemas import conforming
from tests.unit.functions.conftest import Logs

ARN = "arn:aws:states:eu-west-1:000000000000:execution:muster-broadcast:one"
STARTED = "2026-11-23T08:00:00.250Z"
EPOCH = 1_795_420_800.25
REQUEST: dict[str, Any] = {
    "type": "alert",
    "target": {"roles": ["first_responder"], "users": ["u1"]},
    "payload": {"text": "the bridge is closed"},
}


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings with two shards and an hour of retention."""
    config = settings.Accept(roles=ROLES, audience_shards=2, message_retention_seconds=3600)
    monkeypatch.setattr(accept, "config", lambda: config)


@pytest.fixture
def run(context: Context, logs: Logs) -> Any:
    """Accept a request as the state machine does."""

    def run(request: Any, arn: str = ARN) -> dict[str, Any]:
        answer = accept.handler({"request": request, "execution": {"id": arn, "startTime": STARTED}}, context)
        result: dict[str, Any] = json.loads(json.dumps(answer))
        return result

    return run


def test_a_valid_request_is_expanded_for_the_later_states(run: Any) -> None:
    answer = run(REQUEST)
    envelope = json.loads(answer.pop("envelope"))
    identifier = answer["messageId"]
    assert conforming("envelope", envelope) == {
        "type": "alert",
        "id": identifier,
        "sentAt": STARTED,
        "sender": {"service": "unnamed"},
        "payload": REQUEST["payload"],
    }
    assert id_time(identifier) == EPOCH
    scopes = answer.pop("queries")
    assert {scope: query["IndexName"] for scope, query in scopes.items()} == {
        "role": "RoleIndex",
        "user": "UserIndex",
    }
    assert answer == {
        "accepted": True,
        "messageId": identifier,
        "type": "alert",
        "digest": digest(REQUEST),
        "offline": "fallback",
        "expiresAt": 1_795_424_400,
        "audiences": ["role#first_responder", "user#u1"],
        "partitions": [
            {"scope": "role", "value": "first_responder#0"},
            {"scope": "role", "value": "first_responder#1"},
            {"scope": "user", "value": "u1"},
        ],
    }


def test_a_retried_accept_changes_nothing_and_another_execution_is_another_message(run: Any) -> None:
    assert run(REQUEST) == run(REQUEST)
    assert run(REQUEST)["messageId"] != run(REQUEST, ARN + "-other")["messageId"]


def test_the_callers_id_sender_and_offline_policy_are_kept(run: Any) -> None:
    identifier = uuid7(EPOCH - 5, bytes(10))
    sender = {"userId": "u9", "role": "admin"}
    answer = run(REQUEST | {"id": identifier, "sender": sender, "offline": "never"})
    assert (answer["messageId"], answer["offline"]) == (identifier, "never")
    envelope = json.loads(answer["envelope"])
    assert (envelope["id"], envelope["sender"]) == (identifier, sender)


@pytest.mark.parametrize(
    ("seconds", "accepted"),
    [
        (-ID_BEHIND_SECONDS - 1, False),
        (-ID_BEHIND_SECONDS + 1, True),
        (ID_AHEAD_SECONDS - 1, True),
        (ID_AHEAD_SECONDS + 1, False),
    ],
)
def test_an_id_too_far_from_the_broadcasts_start_is_rejected(run: Any, seconds: int, accepted: bool) -> None:
    answer = run(REQUEST | {"id": uuid7(EPOCH + seconds, bytes(10))})
    assert answer["accepted"] is accepted
    assert accepted or [fault["pointer"] for fault in answer["faults"]] == ["/id"]


def test_an_invalid_request_is_answered_with_every_fault_and_logged_without_its_values(
    context: Context, logs: Logs
) -> None:
    request = {"type": "gossip", "target": {"roles": []}, "payload": "a secret", "more": "another"}
    event = {"request": request, "execution": {"id": ARN, "startTime": STARTED}}
    answer = accept.handler(event, context)
    pointers = ["/more", "/payload", "/target/roles", "/type"]
    assert answer["accepted"] is False
    assert [fault["pointer"] for fault in answer["faults"]] == pointers
    assert all(set(fault) == {"pointer", "problem", "fix"} for fault in answer["faults"])
    line, metrics = logs()
    assert line["faults"] == len(pointers)
    assert metrics["BroadcastsRefused"] == [1]
    assert "secret" not in json.dumps([answer, line, metrics])


SECRET = "hunter2"
FULL: dict[str, Any] = {
    "type": "shelter_update",
    "target": {"roles": ["admin"], "users": ["u1"], "shelters": ["s1"]},
    "payload": {"text": "the bridge is closed"},
    "shelterId": "s1",
    "offline": "always",
    "sender": {"userId": "u9", "role": "admin"},
    "id": uuid7(EPOCH, bytes(10)),
}
BAD: list[Any] = [SECRET * 5000, f"{SECRET} #\n", [SECRET, SECRET], {"x": SECRET}, [[SECRET]] * 101, 7, None]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def with_value(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = with_value(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("path", list(places(FULL)), ids=str)
def test_no_fault_contains_a_value_of_the_request(run: Any, path: tuple[Any, ...]) -> None:
    """Step Functions logs the cause of a failed execution, which contains these faults."""
    refused = 0
    for bad in BAD:
        answer = run(with_value(FULL, path, bad))
        if not answer["accepted"]:
            refused += 1
            assert SECRET not in json.dumps(answer)
    assert refused


@pytest.mark.parametrize("request_", [None, [], "text", 7])
def test_an_input_that_is_not_an_object_is_rejected(run: Any, request_: Any) -> None:
    answer = run(request_)
    assert answer["accepted"] is False
    assert [fault["pointer"] for fault in answer["faults"]] == [""]


def test_unknown_roles_are_reported_with_the_other_faults(run: Any) -> None:
    target = {"roles": ["admin", "wizard", "resident", "warlock"]}
    answer = run(REQUEST | {"target": target, "id": uuid7(0, bytes(10))})
    faults = {fault["pointer"]: fault["fix"] for fault in answer["faults"]}
    assert list(faults) == ["/id", "/target/roles/1", "/target/roles/3"]
    assert faults["/target/roles/1"] == "use one of admin, first_responder, resident, shelter_operator"


def test_an_envelope_of_exactly_the_limit_is_accepted_and_one_byte_more_is_not(run: Any) -> None:
    def sized(characters: int) -> dict[str, Any]:
        return REQUEST | {"payload": {"text": "é" + "x" * characters}}

    spare = MAX_ENVELOPE_BYTES - len(run(sized(0))["envelope"].encode())
    assert len(run(sized(spare))["envelope"].encode()) == MAX_ENVELOPE_BYTES
    answer = run(sized(spare + 1))
    assert answer["accepted"] is False
    (fault,) = answer["faults"]
    assert (fault["pointer"], fault["problem"]) == (
        "/payload",
        f"makes the message {MAX_ENVELOPE_BYTES + 1} bytes, more than {MAX_ENVELOPE_BYTES}",
    )


@pytest.mark.parametrize("bad", ["\ud800", float("inf")])
def test_a_payload_that_does_not_fit_into_a_frame_is_rejected(run: Any, bad: Any) -> None:
    assert run(REQUEST | {"payload": {"x": bad}})["accepted"] is False


def test_the_log_line_of_an_accepted_broadcast_has_no_payload(run: Any, context: Context, logs: Logs) -> None:
    run(REQUEST)
    line, metrics = logs()
    assert line["audiences"] == ["role#first_responder", "user#u1"]
    assert metrics["BroadcastsAccepted"] == [1]
    assert "bridge" not in json.dumps([line, metrics])


INPUT_BYTES = 250_000
"""Roughly the largest input of an execution: 256 KiB [Step Functions quotas]."""


@hypothesis_settings(
    max_examples=30, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(hostile('{"type":"alert",'))
@example(Hostile('{"type":"alert","payload":{},"target":{"users":["a",', ("{n}",), "]}}"))
@example(Hostile('{"type":"alert","target":{"all":true},"payload":{"n":[', ("[]",), "]}}"))
@example(Hostile('{"type":"alert","target":{"all":true},"payload":{"text":"', ("é" * 100,), '"}}'))
def test_an_input_of_any_size_is_validated_within_100_ms_and_a_few_times_its_memory(
    run: Any, request_: Hostile
) -> None:
    try:
        request = json.loads(request_.text(INPUT_BYTES))
    except ValueError:
        return  # Step Functions would not start the execution
    answer = run(request)
    if answer["accepted"]:  # Step Functions passes numbers on as doubles, which shortens long ones
        assert len(answer["envelope"].encode()) <= MAX_ENVELOPE_BYTES
    else:
        # The limit of the cause of a failed execution [Step Functions, Fail].
        assert len(json.dumps({"faults": answer["faults"]}, ensure_ascii=False)) <= 32_768
    assert cpu_seconds(lambda: run(request), 0.1) < 0.2
    # Twice the 8 times of a frame, because a valid request is serialised too.
    assert peak_bytes(lambda: run(request)) < 16 * INPUT_BYTES


@pytest.mark.parametrize("name", ["世" * 43, '"' * 65, "\\" * 65])
def test_an_id_longer_than_the_states_have_room_for_is_rejected(run: Any, name: str) -> None:
    request = {
        "type": "shelter_update",
        "shelterId": name,
        "target": {"users": ["u1", name], "shelters": [name]},
        "payload": {},
        "sender": {"userId": name, "role": "admin"},
    }
    answer = run(request)
    pointers = ["/sender/userId", "/shelterId", "/target/shelters/0", "/target/users/1"]
    assert [fault["pointer"] for fault in answer["faults"]] == pointers
    assert answer["faults"][0]["problem"].startswith("takes 1")
    assert run(
        request | {"shelterId": name[:-1], "target": {"users": [name[:-1]]}, "sender": {"service": "s"}}
    )["accepted"]


def test_the_output_of_accept_fits_into_a_state(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the longest ids, in the characters that take most space in JSON, and the most roles."""
    roles = {f"{n:032d}".replace("0", "r", 1): ROLES["admin"] for n in range(100)}
    config = settings.Accept(roles=roles, audience_shards=12, message_retention_seconds=3600)
    monkeypatch.setattr(accept, "config", lambda: config)
    names = [f"{n:02d}" + '"' * 63 for n in range(100)]
    fixed = {"type": "alert", "target": {"roles": list(roles), "users": names, "shelters": names}}
    answer = run(fixed | {"payload": {"text": '"' * 15_200}})
    assert answer["accepted"]
    assert len(json.dumps(answer, ensure_ascii=False).encode()) < 256 * 1024  # [Step Functions quotas]
