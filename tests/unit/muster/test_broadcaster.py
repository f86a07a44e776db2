"""The broadcast starter against a stand-in for Step Functions."""

import json
import logging
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import exceptions as aws
from botocore.stub import ANY, Stubber
from hypothesis import given
from hypothesis import strategies as st

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
    InvalidRequest,
    Receipt,
    UnknownBroadcast,
)
from muster.outputs import Outputs
from tests.unit.muster.test_outputs import FLAT

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


class Clock:
    """Stands in for `time`: a sleep takes no time, and moves the clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(broadcaster_module, "time", clock)
    return clock


@pytest.fixture
def states() -> Iterator[Stubber]:
    """Stand in for Step Functions; every answer that was prepared must be used."""
    client = boto3.client(
        "stepfunctions", region_name="eu-central-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def broadcaster_of(client: Any) -> Broadcaster:
    return Broadcaster(MACHINE, client)


@pytest.fixture
def broadcaster(states: Stubber) -> Broadcaster:
    return broadcaster_of(states.client)


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
    add_earlier(states, request)


def add_earlier(states: Stubber, request: dict[str, Any]) -> None:
    earlier = described("SUCCEEDED", input=json.dumps(request))
    states.add_response("describe_execution", earlier, {"executionArn": f"{EXECUTION}:flood-17"})


class StepFunctions:
    """Keeps executions as Step Functions does: a name starts one, and its input is kept as text."""

    def __init__(self) -> None:
        self.inputs: dict[str, str] = {}
        self.running = False

    def start_execution(self, *, stateMachineArn: str, name: str, input: str) -> dict[str, Any]:
        if name in self.inputs and not (self.running and self.inputs[name] == input):
            raise aws.ClientError({"Error": {"Code": "ExecutionAlreadyExists"}}, "StartExecution")
        self.inputs.setdefault(name, input)
        return {"executionArn": f"{EXECUTION}:{name}"}

    def describe_execution(self, *, executionArn: str) -> dict[str, Any]:
        return {"status": "SUCCEEDED", "input": self.inputs[executionArn.rpartition(":")[2]]}


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


@pytest.mark.parametrize("name", ["", "a" * 81, "flood 17", "flood/17", "flöd", "flood\n", 42, True])
def test_a_name_that_step_functions_would_refuse_is_refused_at_once(
    broadcaster: Broadcaster, name: Any
) -> None:
    with pytest.raises(InvalidName, match="cannot name"):
        start(broadcaster, name=name)


def test_a_repeated_name_with_the_same_request_gives_the_first_execution(
    states: Stubber, broadcaster: Broadcaster
) -> None:
    add_started_before(states, REQUEST)
    assert start(broadcaster, name="flood-17") == Execution(f"{EXECUTION}:flood-17", already_started=True)


@pytest.mark.parametrize("error", ["InvalidBroadcast", "Conflict"])
def test_the_name_of_a_refused_request_says_that_a_corrected_one_needs_another(
    states: Stubber, broadcaster: Broadcaster, error: str
) -> None:
    states.add_client_error("start_execution", "ExecutionAlreadyExists")
    states.add_response(
        "describe_execution",
        described("FAILED", error=error, cause="{}", input=json.dumps(REQUEST | {"target": {}})),
    )
    with pytest.raises(IdempotencyConflict, match="refused; nothing of it was sent") as conflict:
        start(broadcaster, name="flood-17")
    assert "new name for the corrected request" in (conflict.value.fix or "")


def test_a_repeated_name_with_another_request_is_a_conflict_that_says_where(
    states: Stubber, broadcaster: Broadcaster
) -> None:
    add_started_before(states, REQUEST | {"payload": {}, "sender": {"service": "sensors"}})
    with pytest.raises(IdempotencyConflict, match=r"flood-17 .* differs in payload, sender"):
        start(broadcaster, name="flood-17")


class Failing(StepFunctions):
    """Answers each look with the same error."""

    def __init__(self, error: Exception | str) -> None:
        super().__init__()
        if isinstance(error, str):
            error = aws.ClientError({"Error": {"Code": error}}, "DescribeExecution")
        self._error = error

    def describe_execution(self, *, executionArn: str) -> dict[str, Any]:
        raise self._error


EXACT = st.integers(-(2**53) + 1, 2**53 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def test_an_integer_that_step_functions_would_round_is_refused_by_its_place() -> None:
    states = StepFunctions()
    with pytest.raises(InvalidRequest, match=r"/payload/people/0 is an integer beyond 9007199254740991"):
        broadcaster_of(states).start("alert", {"all": True}, {"people": [2**53]})
    assert states.inputs == {}


PAYLOADS = st.dictionaries(
    st.text() | st.integers() | st.booleans() | st.none(),
    st.recursive(
        st.none() | st.booleans() | EXACT | FLOATS | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.lists(inner).map(tuple)
            | st.dictionaries(st.text() | st.integers() | FLOATS, inner)
        ),
        max_leaves=8,
    ),
)


def _members(value: Any) -> int:
    """How many members the objects and arrays in a value have."""
    if isinstance(value, dict | list | tuple):
        inner = value.values() if isinstance(value, dict) else value
        return len(value) + sum(map(_members, inner))
    return 0


@given(payload=PAYLOADS, running=st.booleans(), data=st.data())
def test_the_same_payload_under_the_same_name_is_the_same_broadcast(
    payload: dict[Any, Any], running: bool, data: st.DataObject
) -> None:
    states = StepFunctions()
    states.running = running
    broadcaster = broadcaster_of(states)

    def start(payload: Any) -> Execution:
        return broadcaster.start("alert", {"users": ("ann", "bob")}, payload, name="flood-17")

    try:
        first = start(payload)
    except InvalidRequest:
        # Two keys are the same as text: then what is sent would hold only one of them.
        assert _members(payload) > _members(json.loads(json.dumps(payload)))
        return
    assert json.loads(states.inputs["flood-17"])["payload"] == json.loads(json.dumps(payload))
    shuffled = dict(data.draw(st.permutations(list(payload.items()))))
    # The same, in another order, and as another service would read it from JSON.
    for again in (payload, shuffled, json.loads(json.dumps(payload))):
        assert start(again).arn == first.arn
    with pytest.raises(IdempotencyConflict, match="differs in payload"):
        start(payload | {"one": "more", "than": [payload]})


@pytest.mark.parametrize(("first", "second"), [({"a": 1}, {"a": True}), ({"a": [0]}, {"a": [False]})])
def test_true_is_not_one(first: dict[str, Any], second: dict[str, Any]) -> None:
    broadcaster = broadcaster_of(StepFunctions())
    broadcaster.start("alert", {"all": True}, first, name="flood-17")
    with pytest.raises(IdempotencyConflict, match="differs in payload"):
        broadcaster.start("alert", {"all": True}, second, name="flood-17")


def test_a_number_is_the_same_however_it_is_written() -> None:
    states = StepFunctions()
    states.inputs["flood-17"] = json.dumps(REQUEST | {"payload": {"level": 2}})
    again = broadcaster_of(states).start("alert", {"all": True}, {"level": 2.0}, name="flood-17")
    assert again.already_started


@pytest.mark.parametrize(
    ("payload", "place"),
    [
        ({"level": float("nan")}, "/payload/level"),
        ({"levels": (1, float("inf"))}, "/payload/levels/1"),
        (json.loads('{"a": {"b/c": -1e999}}'), "/payload/a/b~1c"),
        ({"day": date(2026, 11, 25)}, "/payload/day"),
        ({"text": "\ud800"}, "/payload/text"),
    ],
)
def test_a_value_that_json_cannot_represent_is_refused_with_its_pointer(
    broadcaster: Broadcaster, payload: dict[str, Any], place: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^{place} ") as refused:
        broadcaster.start("alert", {"all": True}, payload)
    assert isinstance(refused.value, BroadcastError)
    assert refused.value.fix
    assert refused.value.exit_code == 2


def test_keys_that_are_the_same_as_text_are_refused(broadcaster: Broadcaster) -> None:
    with pytest.raises(InvalidRequest, match="the key '1' twice"):
        broadcaster.start("alert", {"all": True}, {"a": {1: "one", "1": "uno"}})


@pytest.mark.parametrize("code", ["ExecutionDoesNotExist", "ThrottlingException"])
def test_a_conflict_is_looked_up_until_step_functions_knows_the_first(
    states: Stubber, broadcaster: Broadcaster, code: str
) -> None:
    states.add_client_error("start_execution", "ExecutionAlreadyExists")
    for _ in range(3):
        states.add_client_error("describe_execution", code)
    add_earlier(states, REQUEST)
    assert start(broadcaster, name="flood-17").already_started


def test_a_conflict_that_cannot_be_looked_up_says_that_a_repeat_is_safe(broadcaster: Broadcaster) -> None:
    unknowing = Failing("ExecutionDoesNotExist")
    unknowing.inputs["flood-17"] = "{}"
    with pytest.raises(BroadcastError, match="cannot say yet") as unclear:
        broadcaster_of(unknowing).start("alert", {"all": True}, {}, name="flood-17")
    assert not isinstance(unclear.value, IdempotencyConflict)
    assert "same name" in (unclear.value.fix or "")


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


def test_a_receipt_round_trips_through_json() -> None:
    assert Receipt.parse(RECEIPT).to_dict() == RECEIPT


def test_an_execution_that_is_not_visible_yet_is_waited_for(
    states: Stubber, broadcaster: Broadcaster
) -> None:
    states.add_client_error("describe_execution", "ExecutionDoesNotExist")
    states.add_response("describe_execution", described("SUCCEEDED", output=json.dumps(RECEIPT)))
    assert broadcaster.wait(Execution(EXECUTION), 10).delivered == 3


def test_an_execution_that_stays_unknown_is_an_error(clock: Clock) -> None:
    with pytest.raises(UnknownBroadcast, match=f"no broadcast {EXECUTION}"):
        broadcaster_of(Failing("ExecutionDoesNotExist")).wait(Execution(EXECUTION), 60)
    assert broadcaster_module.CONSISTENCY_SECONDS <= clock.now < broadcaster_module.CONSISTENCY_SECONDS + 1


@pytest.mark.parametrize(
    "passing",
    [
        {"service_error_code": "ThrottlingException", "http_status_code": 400},
        {"service_error_code": "TooManyRequestsException", "http_status_code": 429},
        {"service_error_code": "KmsThrottlingException", "http_status_code": 400},
        {"service_error_code": "InternalServerError", "http_status_code": 500},
        {"service_error_code": "", "http_status_code": 503},
    ],
)
def test_a_poll_that_step_functions_cannot_answer_counts_as_running(
    states: Stubber, broadcaster: Broadcaster, clock: Clock, passing: dict[str, Any]
) -> None:
    for _ in range(4):
        states.add_client_error("describe_execution", **passing)
    states.add_response("describe_execution", described("SUCCEEDED", output=json.dumps(RECEIPT)))
    polls: list[float] = []
    assert broadcaster.wait(Execution(EXECUTION), 60, on_poll=polls.append).delivered == 3
    assert len(polls) == 4
    assert clock.now >= 4 * broadcaster_module.LATER_POLL_SECONDS[0]


@pytest.mark.parametrize(
    "lost",
    [
        aws.EndpointConnectionError(endpoint_url="https://states"),
        aws.ReadTimeoutError(endpoint_url="https://states"),
        aws.ConnectionClosedError(endpoint_url="https://states"),
    ],
)
def test_a_poll_that_does_not_arrive_counts_as_running(lost: Exception) -> None:
    class Flaky(StepFunctions):
        answers: Iterator[Any] = iter([lost, {"status": "SUCCEEDED", "output": json.dumps(RECEIPT)}])

        def describe_execution(self, *, executionArn: str) -> dict[str, Any]:
            answer = next(self.answers)
            if isinstance(answer, Exception):
                raise answer
            return dict(answer)

    assert broadcaster_of(Flaky()).wait(Execution(EXECUTION), 60).delivered == 3


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("AccessDeniedException", "AccessDenied"),
        (
            aws.SSLError(endpoint_url="https://states", error=OSError("certificate expired")),
            "certificate expired",
        ),
        (aws.NoCredentialsError(), "credentials"),
    ],
)
def test_a_poll_that_can_never_succeed_ends_the_wait(error: Exception | str, code: str) -> None:
    with pytest.raises(BroadcastError, match=code) as failed:
        broadcaster_of(Failing(error)).wait(Execution(EXECUTION), 60)
    assert not isinstance(failed.value, BroadcastTimeout)


def test_fifteen_waits_at_once_stay_under_the_rate_of_describe_execution(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcaster_module, "random", random.Random(15))
    looks: list[float] = []

    class Slow(StepFunctions):
        def describe_execution(self, *, executionArn: str) -> dict[str, Any]:
            looks.append(clock.now)
            ended = clock.now >= 120
            return {"status": "SUCCEEDED" if ended else "RUNNING", "output": json.dumps(RECEIPT)}

    for _ in range(15):
        clock.now = 0.0
        broadcaster_of(Slow()).wait(Execution(EXECUTION), 300)
    later = [look for look in looks if look >= broadcaster_module.YOUNG_SECONDS + 5]
    for second in range(15, 120):
        assert sum(second <= look < second + 5 for look in later) <= 5 * 10
    # 250 is the bucket of DescribeExecution in most regions, from which the first looks are served.
    assert len(looks) - len(later) <= 250 + 15 * 10


def test_a_wait_that_step_functions_never_answers_says_so(states: Stubber, broadcaster: Broadcaster) -> None:
    states.add_client_error("describe_execution", "ThrottlingException")
    with pytest.raises(BroadcastTimeout) as late:
        broadcaster.wait(Execution(EXECUTION), 0)
    assert "did not return" in (late.value.fix or "")


@pytest.mark.parametrize("output", ["{}", "[]", "{", json.dumps(RECEIPT | {"startedAt": "soon"})])
def test_a_receipt_of_another_version_is_an_error_that_says_so(
    states: Stubber, broadcaster: Broadcaster, output: str
) -> None:
    states.add_response("describe_execution", described("SUCCEEDED", output=output))
    with pytest.raises(BroadcastError, match="cannot read"):
        broadcaster.wait(Execution(EXECUTION), 10)


@pytest.mark.parametrize("cause", ["", "not json", "{}", '{"faults": [{}]}', '{"faults": 1}'])
def test_a_refusal_whose_cause_is_something_else_is_quoted(
    states: Stubber, broadcaster: Broadcaster, cause: str
) -> None:
    states.add_response("describe_execution", described("FAILED", error="InvalidBroadcast", cause=cause))
    with pytest.raises(BroadcastFailed, match="InvalidBroadcast") as failed:
        broadcaster.wait(Execution(EXECUTION), 10)
    assert failed.value.cause == cause


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


def history(*states_entered: str) -> dict[str, Any]:
    return {
        "events": [
            {
                "timestamp": STARTED,
                "type": "TaskStateEntered",
                "id": number,
                "stateEnteredEventDetails": {"name": name},
            }
            for number, name in enumerate(states_entered, 1)
        ]
    }


class TestAcceptance:
    """What `wait_accepted` takes for a sign."""

    def test_a_broadcast_that_records_is_accepted_while_it_runs(
        self, states: Stubber, broadcaster: Broadcaster
    ) -> None:
        for entered in (("Accept",), ("Accept", "Accepted?", "Claim"), ("Accept", "Claim", "Record")):
            states.add_response("describe_execution", described("RUNNING"))
            states.add_response("get_execution_history", history(*entered))
        broadcaster.wait_accepted(Execution(EXECUTION), 60)

    def test_one_that_has_ended_needs_no_history(self, states: Stubber, broadcaster: Broadcaster) -> None:
        states.add_response("describe_execution", described("SUCCEEDED", output="{}"))
        broadcaster.wait_accepted(Execution(EXECUTION), 60)

    def test_a_refusal_lists_its_faults(self, states: Stubber, broadcaster: Broadcaster) -> None:
        faults = [{"pointer": "/target", "problem": "is missing", "fix": "add target"}]
        states.add_response("describe_execution", described("RUNNING"))
        states.add_response("get_execution_history", history("Accept"))
        failure = described("FAILED", error="InvalidBroadcast", cause=json.dumps({"faults": faults}))
        states.add_response("describe_execution", failure)
        with pytest.raises(InvalidBroadcast, match="/target is missing: add target"):
            broadcaster.wait_accepted(Execution(EXECUTION), 60)

    @pytest.mark.parametrize("code", ["AccessDeniedException", "ThrottlingException"])
    def test_without_a_history_the_end_tells(
        self, states: Stubber, broadcaster: Broadcaster, code: str
    ) -> None:
        states.add_response("describe_execution", described("RUNNING"))
        states.add_client_error("get_execution_history", code)
        states.add_response("describe_execution", described("SUCCEEDED", output="{}"))
        broadcaster.wait_accepted(Execution(EXECUTION), 60)

    def test_silence_is_a_timeout(self, states: Stubber, broadcaster: Broadcaster) -> None:
        states.add_response("describe_execution", described("RUNNING"))
        states.add_response("get_execution_history", history("Accept"))
        with pytest.raises(BroadcastTimeout, match="sign of acceptance"):
            broadcaster.wait_accepted(Execution(EXECUTION), 0)


def test_a_logged_error_contains_its_faults_once(
    caplog: pytest.LogCaptureFixture, states: Stubber, broadcaster: Broadcaster
) -> None:
    faults = [{"pointer": "/target", "problem": "is missing", "fix": "add target"}]
    failure = described("FAILED", error="InvalidBroadcast", cause=json.dumps({"faults": faults}))
    states.add_response("describe_execution", failure)
    try:
        broadcaster.wait(Execution(EXECUTION), 10)
    except InvalidBroadcast:
        logging.getLogger(__name__).exception("the alert failed")
    assert caplog.text.count("/target is missing: add target") == 1


def test_from_outputs_takes_outputs_a_file_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(FLAT))
    monkeypatch.setenv("MUSTER_OUTPUTS", str(path))
    for outputs in (Outputs.read(path), path, str(path), None):
        made = Broadcaster.from_outputs(outputs)
        assert made.execution("x").arn.endswith(":execution:muster-broadcast:x")


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
        MACHINE.replace("-broadcast", "-fanout"),
        MACHINE.replace("muster-broadcast", f"{'m' * 71}-broadcast"),
        None,
        17,
    ],
)
def test_another_arn_is_refused_with_a_fix(arn: Any) -> None:
    with pytest.raises(BroadcastError, match="is not the ARN of a broadcast state machine") as refused:
        Broadcaster(arn)
    assert "broadcast_state_machine_arn" in (refused.value.fix or "")
