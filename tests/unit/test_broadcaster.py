"""The broadcast starter against a stand-in for Step Functions."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from muster import broadcaster as broadcaster_module
from muster.broadcaster import (
    Broadcaster,
    BroadcastError,
    BroadcastFailed,
    BroadcastTimeout,
    Execution,
    IdempotencyConflict,
    InvalidBroadcast,
    InvalidName,
    Receipt,
)

MACHINE = "arn:aws:states:eu-central-1:000000000000:stateMachine:muster-broadcast"
EXECUTION = "arn:aws:states:eu-central-1:000000000000:execution:muster-broadcast"
STARTED = datetime(2026, 11, 23, tzinfo=UTC)
REQUEST = {"offline": "fallback", "payload": {"text": "ü"}, "target": {"all": True}, "type": "alert"}
RECEIPT = {
    "id": "019ab000-0000-7000-8000-000000000000",
    "type": "alert",
    "audience": 5,
    "delivered": 3,
    "gone": 1,
    "failed": 1,
    "offline": 2,
    "offlineFailed": 0,
    "pages": 4,
    "retries": 1,
    "partitions": 2,
    "unreached": [{"scope": "all", "value": "all#1"}],
    "notified": False,
    "startedAt": "2026-11-23T08:15:30.125Z",
    "durationMs": 312,
}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcaster_module, "POLL_SECONDS", (0.001, 0.002))


@pytest.fixture
def states() -> Iterator[Stubber]:
    """Stand in for Step Functions; every answer that was prepared must be used."""
    client = boto3.client(
        "stepfunctions", region_name="eu-central-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


@pytest.fixture
def broadcaster(states: Stubber) -> Broadcaster:
    return Broadcaster(MACHINE, states.client)


def start(broadcaster: Broadcaster, **more: Any) -> Execution:
    return broadcaster.start("alert", {"all": True}, {"text": "ü"}, **more)


def described(status: str, **more: Any) -> dict[str, Any]:
    return {
        "executionArn": EXECUTION,
        "stateMachineArn": MACHINE,
        "status": status,
        "startDate": STARTED,
    } | more


def add_started_before(states: Stubber, request: dict[str, Any]) -> None:
    states.add_client_error("start_execution", "ExecutionAlreadyExists")
    earlier = described("SUCCEEDED", input=json.dumps(request))
    states.add_response("describe_execution", earlier, {"executionArn": f"{EXECUTION}:flood-17"})


def test_start_sends_the_request_as_sorted_json_under_the_name(
    states: Stubber, broadcaster: Broadcaster
) -> None:
    states.add_response(
        "start_execution",
        {"executionArn": f"{EXECUTION}:flood-17", "startDate": STARTED},
        {
            "stateMachineArn": MACHINE,
            "name": "flood-17",
            "input": '{"offline":"fallback","payload":{"text":"ü"},"target":{"all":true},"type":"alert"}',
        },
    )
    execution = start(broadcaster, name="flood-17")
    assert execution == Execution(f"{EXECUTION}:flood-17", already_started=False)
    assert execution.name == "flood-17"


def test_shelter_and_sender_are_sent_when_given(states: Stubber, broadcaster: Broadcaster) -> None:
    request = REQUEST | {
        "offline": "never",
        "sender": {"service": "sensors"},
        "shelterId": "north",
        "type": "shelter_update",
    }
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    states.add_response(
        "start_execution",
        {"executionArn": f"{EXECUTION}:x", "startDate": STARTED},
        {"stateMachineArn": MACHINE, "name": ANY, "input": text},
    )
    broadcaster.start(
        "shelter_update",
        {"all": True},
        {"text": "ü"},
        offline="never",
        shelter_id="north",
        sender={"service": "sensors"},
    )


@pytest.mark.parametrize("name", ["", "a" * 81, "flood 17", "flood/17", "flöd", "flood\n"])
def test_a_name_that_step_functions_would_refuse_is_refused_at_once(
    broadcaster: Broadcaster, name: str
) -> None:
    with pytest.raises(InvalidName, match="cannot name"):
        start(broadcaster, name=name)


def test_a_repeated_name_with_the_same_request_gives_the_first_execution(
    states: Stubber, broadcaster: Broadcaster
) -> None:
    add_started_before(states, REQUEST)
    assert start(broadcaster, name="flood-17") == Execution(f"{EXECUTION}:flood-17", already_started=True)


def test_a_repeated_name_with_another_request_is_a_conflict_that_says_where(
    states: Stubber, broadcaster: Broadcaster
) -> None:
    add_started_before(states, REQUEST | {"payload": {}, "sender": {"service": "sensors"}})
    with pytest.raises(IdempotencyConflict, match=r"flood-17 .* differs in payload, sender"):
        start(broadcaster, name="flood-17")


def test_what_aws_refuses_is_a_broadcast_error(states: Stubber, broadcaster: Broadcaster) -> None:
    states.add_client_error("start_execution", "AccessDeniedException", "no states:StartExecution")
    with pytest.raises(BroadcastError, match="no states:StartExecution"):
        start(broadcaster)


def test_an_execution_is_found_by_its_name(broadcaster: Broadcaster) -> None:
    assert broadcaster.execution("flood-17") == Execution(f"{EXECUTION}:flood-17")


def test_wait_polls_until_the_receipt_is_there(states: Stubber, broadcaster: Broadcaster) -> None:
    for _ in range(2):
        states.add_response("describe_execution", described("RUNNING"))
    states.add_response("describe_execution", described("SUCCEEDED", output=json.dumps(RECEIPT)))
    polls: list[float] = []
    receipt = broadcaster.wait(Execution(EXECUTION), 10, on_poll=polls.append)
    assert (receipt.audience, receipt.delivered, receipt.offline_failed) == (5, 3, 0)
    assert receipt.unreached[0].value == "all#1"
    assert receipt.started_at == datetime(2026, 11, 23, 8, 15, 30, 125000, UTC)
    assert len(polls) == 2
    assert polls == sorted(polls)


def test_a_receipt_survives_the_way_to_json_and_back() -> None:
    assert Receipt.parse(RECEIPT).to_dict() == RECEIPT


def test_an_execution_that_is_not_visible_yet_is_waited_for(
    states: Stubber, broadcaster: Broadcaster
) -> None:
    states.add_client_error("describe_execution", "ExecutionDoesNotExist")
    states.add_response("describe_execution", described("SUCCEEDED", output=json.dumps(RECEIPT)))
    assert broadcaster.wait(Execution(EXECUTION), 10).delivered == 3


def test_an_execution_that_stays_unknown_is_an_error(
    states: Stubber, broadcaster: Broadcaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcaster_module, "CONSISTENCY_SECONDS", 0.0)
    states.add_client_error("describe_execution", "ExecutionDoesNotExist")
    with pytest.raises(BroadcastError, match="ExecutionDoesNotExist"):
        broadcaster.wait(Execution(EXECUTION), 10)


@pytest.mark.parametrize("error", ["InvalidBroadcast", "Conflict"])
def test_a_refused_broadcast_lists_every_fault(states: Stubber, broadcaster: Broadcaster, error: str) -> None:
    faults = [
        {"pointer": "/target", "problem": "is missing", "fix": "add target"},
        {"pointer": "", "problem": "is empty", "fix": "say something"},
    ]
    failure = described("FAILED", error=error, cause=json.dumps({"faults": faults}))
    states.add_response("describe_execution", failure)
    with pytest.raises(InvalidBroadcast, match=r"2 fault") as refused:
        broadcaster.wait(Execution(EXECUTION), 10)
    assert refused.value.error == error
    assert [fault.pointer for fault in refused.value.faults] == ["/target", ""]
    assert refused.value.fix == "/target is missing: add target\nthe message is empty: say something"


@pytest.mark.parametrize(
    ("status", "more", "error"),
    [
        ("FAILED", {"error": "States.Runtime", "cause": "broken"}, "States.Runtime"),
        ("ABORTED", {}, "ABORTED"),
    ],
)
def test_any_other_end_carries_error_cause_and_execution(
    states: Stubber, broadcaster: Broadcaster, status: str, more: dict[str, str], error: str
) -> None:
    states.add_response("describe_execution", described(status, **more))
    with pytest.raises(BroadcastFailed, match=error) as failed:
        broadcaster.wait(Execution(EXECUTION), 10)
    assert (failed.value.error, failed.value.cause) == (error, more.get("cause", ""))
    assert failed.value.execution.arn == EXECUTION


def test_no_receipt_in_time_is_a_timeout(states: Stubber, broadcaster: Broadcaster) -> None:
    states.add_response("describe_execution", described("RUNNING"))
    with pytest.raises(BroadcastTimeout) as late:
        broadcaster.wait(Execution(EXECUTION), 0)
    assert EXECUTION in (late.value.fix or "")


def test_without_a_client_it_uses_the_region_of_the_state_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(boto3, "client", lambda service, region_name: made.append((service, region_name)))
    Broadcaster(MACHINE)
    assert made == [("stepfunctions", "eu-central-1")]


@pytest.mark.parametrize(
    "arn",
    [
        "",
        "muster-broadcast",
        "arn:aws:lambda:eu-central-1:123456789012:function:muster-accept",
        MACHINE.replace(":stateMachine:", ":execution:"),
    ],
)
def test_what_is_no_state_machine_is_refused_with_what_to_use(arn: str) -> None:
    with pytest.raises(BroadcastError, match="is not the ARN of a state machine") as refused:
        Broadcaster(arn)
    assert "broadcast_state_machine_arn" in (refused.value.fix or "")
