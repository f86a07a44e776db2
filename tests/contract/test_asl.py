"""Static checks of the state machines: their graphs, time-outs, retries and expressions."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonata
import pytest

from functions.shared import audiences, messages
from tests.support.schemas import conforming

ROOT = Path(__file__).parents[2]
VARIABLES = {
    "accept_arn": "arn:aws:lambda:us-east-1:000000000000:function:accept",
    "deliver_arn": "arn:aws:lambda:us-east-1:000000000000:function:deliver",
    "offline_arn": "arn:aws:lambda:us-east-1:000000000000:function:offline",
    "fanout_arn": "arn:aws:states:us-east-1:000000000000:stateMachine:fanout",
    "connections_table": "connections",
    "messages_table": "messages",
    "topic_arn": "arn:aws:sns:us-east-1:000000000000:offline",
    "metrics_namespace": "Muster",
    "service": "muster",
    "partition_concurrency": "10",
    "post_burst": "4500",
    "post_rate": "9500",
    "batch_concurrency": "2",
    "page_size": "500",
    "batch_size": "250",
}
State = dict[str, Any]


def render(name: str) -> State:
    text = (ROOT / "statemachines" / f"{name}.asl.json").read_text()
    machine: State = json.loads(re.sub(r"\$\{(\w+)\}", lambda match: VARIABLES[match[1]], text))
    return machine


def graphs(graph: State) -> Iterator[State]:
    """Yield a graph and every graph nested in it."""
    yield graph
    for state in graph["States"].values():
        for inner in [*state.get("Branches", ()), *filter(None, [state.get("ItemProcessor")])]:
            yield from graphs(inner)


MACHINES = {name: render(name) for name in ("broadcast", "fanout")}
EVERY = [
    (f"{machine}-{name}", name, state)
    for machine, root in MACHINES.items()
    for graph in graphs(root)
    for name, state in graph["States"].items()
]
STATES = [pytest.param(name, state, id=where) for where, name, state in EVERY]
TASKS = [pytest.param(name, state, id=where) for where, name, state in EVERY if state["Type"] == "Task"]


def successors(state: State) -> Iterator[str]:
    for step in [state, *state.get("Choices", ()), *state.get("Catch", ())]:
        if "Next" in step:
            yield step["Next"]
    if "Default" in state:
        yield state["Default"]


def expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)
    elif isinstance(node, str) and node.startswith("{%"):
        yield node.removeprefix("{%").removesuffix("%}")


@pytest.mark.parametrize("machine", MACHINES)
def test_every_state_is_reachable_and_every_transition_has_a_target(machine: str) -> None:
    for graph in graphs(MACHINES[machine]):
        reached: set[str] = set()
        waiting = [graph["StartAt"]]
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += successors(graph["States"][name])
        assert reached == set(graph["States"])


@pytest.mark.parametrize(("name", "state"), STATES)
def test_every_state_has_a_comment_and_an_explicit_end(name: str, state: State) -> None:
    assert state.get("Comment")
    assert all(choice.get("Comment") for choice in state.get("Choices", ()))
    assert all(catcher.get("Comment") for catcher in state.get("Catch", ()))
    if state["Type"] not in ("Choice", "Fail"):
        assert ("Next" in state) != (state.get("End") is True)


@pytest.mark.parametrize(("name", "state"), TASKS)
def test_every_task_has_a_timeout_and_handles_failures(name: str, state: State) -> None:
    assert state["TimeoutSeconds"] <= 330
    assert state.get("Retry") or state.get("Catch")
    for retrier in state.get("Retry", ()):
        assert retrier["JitterStrategy"] == "FULL"
        assert {"BackoffRate", "MaxDelaySeconds", "MaxAttempts", "IntervalSeconds"} <= set(retrier)
        assert "States.ALL" not in retrier["ErrorEquals"]  # some errors must not be retried


@pytest.mark.parametrize(("name", "state"), STATES)
def test_every_expression_parses(name: str, state: State) -> None:
    for expression in expressions(state):
        jsonata.Jsonata.jsonata(expression)


def test_a_state_that_calls_a_function_has_its_name() -> None:
    called = {
        state["Arguments"]["FunctionName"].rsplit(":", 1)[1]
        for _, _, state in EVERY
        if state.get("Resource") == "arn:aws:states:::lambda:invoke"
    }
    assert called == {"accept", "deliver", "offline"}
    for function in called:
        assert (ROOT / "functions" / f"{function}.py").exists()
        assert any(function.capitalize() in graph["States"] for m in MACHINES.values() for graph in graphs(m))


def test_only_quoted_strings_are_templated() -> None:
    for name in MACHINES:
        json.loads((ROOT / "statemachines" / f"{name}.asl.json").read_text())


def test_the_query_has_a_start_key_only_when_there_is_a_cursor() -> None:
    arguments = MACHINES["fanout"]["States"]["QueryPage"]["Arguments"]
    query = {"IndexName": "AllIndex", "ExpressionAttributeValues": {":role0": {"S": "admin"}}}
    partition = {"scope": "all", "value": "all#0"}

    def evaluate(cursor: Any) -> State:
        expression = jsonata.Jsonata.jsonata(next(expressions(arguments)))
        states = {"input": {"query": query, "partition": partition, "cursor": cursor}}
        result: State = expression.evaluate(None, {"states": states})
        return result

    first = evaluate(None)
    assert "ExclusiveStartKey" not in first
    assert first["Limit"] == 500
    assert set(first["ExpressionAttributeValues"]) == {":role0", ":key", ":now"}
    cursor = {"connectionId": {"S": "c"}, "shard": {"S": "all#0"}}
    assert evaluate(cursor)["ExclusiveStartKey"] == cursor


def retrier_of(state: State, error: str) -> State | None:
    """Return the first retrier that matches an error. States.TaskFailed matches all but a time-out."""
    for retrier in state.get("Retry", ()):
        named = retrier["ErrorEquals"]
        if error in named or ("States.TaskFailed" in named and error != "States.Timeout"):
            found: State = retrier
            return found
    return None


LAMBDA_ERRORS = (
    # Errors that AWS calls transient. [Step Functions, Handling errors]
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.TooManyRequestsException",
    # A function that timed out or ran out of memory, and one whose runtime crashed.
    "Lambda.Unknown",
    "Sandbox.Timedout",
    "Runtime.ExitError",
)


@pytest.mark.parametrize(("name", "state"), TASKS)
def test_every_transient_error_of_a_task_is_retried(name: str, state: State) -> None:
    if name == "RunFanOut":  # its loop repeats it from the last cursor
        assert state["Catch"][0]["ErrorEquals"] == ["States.ALL"]
        assert state["Catch"][0]["Next"] == state["Next"] == "PartitionDone?"
        return
    of_service = LAMBDA_ERRORS if state["Resource"].endswith("lambda:invoke") else ("Service.AnyException",)
    for error in (*of_service, "States.TaskFailed", "States.Timeout"):
        retrier = retrier_of(state, error)
        assert retrier, error
        assert retrier["MaxAttempts"] >= 1, error


THROTTLED_SECONDS = 1
"""A throttled invocation is rejected before the function runs."""


def longest(state: State) -> float:
    """Seconds that a task takes when every attempt of every retrier is used up, with the longest pauses.

    Retriers of one state count independently, so they add up. [Step Functions, Handling errors]
    """
    seconds = float(state["TimeoutSeconds"])
    for retrier in state["Retry"]:
        throttled = retrier["ErrorEquals"] == ["Lambda.TooManyRequestsException"]
        for attempt in range(retrier["MaxAttempts"]):
            pause = retrier["IntervalSeconds"] * retrier["BackoffRate"] ** attempt
            seconds += min(retrier["MaxDelaySeconds"], pause)
            seconds += THROTTLED_SECONDS if throttled else state["TimeoutSeconds"]
    return seconds


def test_the_longest_page_ends_before_an_express_execution_does() -> None:
    states = MACHINES["fanout"]["States"]
    deliver = states["Deliver"]["ItemProcessor"]["States"]["DeliverBatch"]
    # All batches of the largest page run at once.
    batches = math.ceil(int(VARIABLES["page_size"]) / int(VARIABLES["batch_size"]))
    assert batches <= int(VARIABLES["batch_concurrency"])
    floor = (states["PublishPage"], states["CountOfflineFailed"])
    page = sum(longest(state) for state in (states["QueryPage"], deliver, states["Offline"], *floor))
    (last_start,) = re.findall(r"< (\d+)000 ", states["MorePages?"]["Choices"][0]["Condition"])
    assert MACHINES["fanout"]["TimeoutSeconds"] == 300  # five minutes [Step Functions quotas]
    assert int(last_start) + page + BETWEEN_STATES_SECONDS < MACHINES["fanout"]["TimeoutSeconds"]
    run = MACHINES["broadcast"]["States"]["Reach"]["Branches"][0]["States"]["FanOut"]["ItemProcessor"]
    assert run["States"]["RunFanOut"]["TimeoutSeconds"] > MACHINES["fanout"]["TimeoutSeconds"]


BETWEEN_STATES_SECONDS = 5
"""Seconds allowed for the transitions between states."""


def test_the_overlap_of_a_resume_covers_late_records() -> None:
    """The allowances of `messages.RESUME_OVERLAP_SECONDS`, each at its worst.

    A resume returns an id from after its own time. Just after it has read the queue, another message is
    recorded, whose id is from before its broadcast's start.
    """
    states = MACHINES["broadcast"]["States"]
    record = states["Record"]
    target = json.loads((ROOT / "schemas" / "target.schema.json").read_text())["properties"]
    audiences_at_most = sum(target[kind]["maxItems"] for kind in ("roles", "shelters", "users"))
    assert audiences_at_most == 300
    assert record["MaxConcurrency"] == 40  # what an inline Map runs side by side [Step Functions quotas]
    rounds = math.ceil(audiences_at_most / record["MaxConcurrency"])
    recording = (
        longest(states["Accept"])
        + longest(states["Claim"])
        + rounds * longest(record["ItemProcessor"]["States"]["RecordAudience"])
    )
    skew = messages.ID_AHEAD_SECONDS + messages.ID_BEHIND_SECONDS
    assert skew + recording + BETWEEN_STATES_SECONDS <= messages.RESUME_OVERLAP_SECONDS


STEP_FUNCTIONS_NAMES = {"hash", "parse", "partition", "random", "range", "states", "uuid"}
"""What Step Functions adds to JSONata. [Step Functions, Transforming data with JSONata]"""


def is_taken(name: str) -> bool:
    return name in STEP_FUNCTIONS_NAMES or jsonata.Jsonata.jsonata(f"$exists(${name})").evaluate(None) is True


def test_no_variable_hides_a_function_or_another_variable() -> None:
    assert is_taken("type")
    for machine, root in MACHINES.items():
        states = [state for graph in graphs(root) for state in graph["States"].values()]
        assigned = [name for state in states for name in state.get("Assign", ())]
        assert len(set(assigned)) == len(assigned)
        text = " ".join(expressions(root))
        bound = set(re.findall(r"\$(\w+) :=", text))
        for parameters in re.findall(r"function\(([^)]*)\)", text):
            bound |= set(re.findall(r"\$(\w+)", parameters))
        assert [name for name in {*bound, *assigned} if is_taken(name)] == [], machine
        assert not bound & set(assigned), machine


def test_no_expression_parses_or_prints_a_payload() -> None:
    """Reference JSONata prints numbers with 15 significant digits: 9007199254740991 becomes ...990."""
    text = [expression for root in MACHINES.values() for expression in expressions(root)]
    parsed = {argument for each in text for argument in re.findall(r"\$parse\(([^()]*)\)", each)}
    assert parsed == {"$states.result.Output"}  # counts and a cursor
    assert not [each for each in text if "$eval" in each or "$number" in each or "$formatNumber" in each]
    # The sender's own text is in the execution's input and, before Accept, in the state's.
    assert {path for each in text for path in re.findall(r"Execution\.Input[\w.]*", each)} == {
        "Execution.Input.target"
    }
    accept = MACHINES["broadcast"]["States"]["Accept"]
    assert accept["Arguments"]["Payload"]["request"] == "{% $states.input %}"
    assert accept["Output"] == "{% $states.result.Payload %}"
    assert not [each for each in text if "payload" in each.lower().replace("$states.result.payload", "")]


SMALL = {
    "partition": {"scope": "all", "value": "all#0"},
    "undelivered": [{"userId": 'u"1'}, {"userId": 'u"1'}],
}
PUBLISHING = [
    (where, state) for where, _, state in EVERY if state.get("Resource", "").endswith("sns:publish")
]


@pytest.mark.parametrize(("where", "state"), PUBLISHING, ids=[where for where, _ in PUBLISHING])
def test_a_subscriber_gets_the_same_text_as_a_connection(where: str, state: State) -> None:
    request = {
        "type": "alert",
        "payload": {"number": 9007199254740991, "fine": 0.12345678901234566, "quoted": '"\\ \u2028 日本'},
    }
    envelope = messages.envelope(request, "019aaeee-0000-7000-8000-000000000000", 1_763_900_000.5)
    states = {
        "input": {"envelope": envelope, "message": {"envelope": envelope}, **SMALL},
        "context": {"Execution": {"Input": {"target": {"users": ['u"1']}, "payload": request["payload"]}}},
    }
    (expression,) = expressions(state["Arguments"]["Message"])
    text = jsonata.Jsonata.jsonata(expression).evaluate(None, {"states": states})
    assert f'"message":{envelope},' in text
    conforming("offline-notification", json.loads(text))


def test_a_failure_logs_nothing_of_the_message() -> None:
    """Step Functions logs `error` and `cause` even where execution data is left out."""
    failures = {name: state for _, name, state in EVERY if state["Type"] == "Fail"}
    assert {name for name, state in failures.items() if state["Cause"].startswith("{%")} == {"Refused"}
    assert list(expressions(failures["Refused"])) == [" $string({'faults': $states.input.faults}) "]
    assert not [each for root in MACHINES.values() for each in expressions(root) if "errorOutput" in each]


def test_a_conflict_has_the_same_error_format_as_invalid_input() -> None:
    claim, conflict = (MACHINES["broadcast"]["States"][name] for name in ("Claim", "Conflict"))
    assert conflict["Error"] == "Conflict"
    (fault,) = json.loads(conflict["Cause"])["faults"]
    assert fault.keys() == {"pointer", "problem", "fix"}
    assert fault["pointer"] == "/id"
    taken, other = claim["Catch"]
    assert (taken["ErrorEquals"], taken["Next"]) == (["DynamoDB.ConditionalCheckFailedException"], "Conflict")
    assert (retrier_of(claim, taken["ErrorEquals"][0]) or {})["MaxAttempts"] == 0
    # A write that fails for another reason does not stop the message.
    assert (other["ErrorEquals"], other["Next"], other["Output"]) == (
        ["States.ALL"],
        claim["Next"],
        claim["Output"],
    )


def test_the_largest_page_fits_a_state() -> None:
    states = MACHINES["fanout"]["States"]
    row = {"connectionId": {"S": "c" * 20}, "userId": {"S": "u" * 128}, "connectedAt": {"S": "t" * 24}}
    roles = [f"{n:032d}" for n in range(100)]
    target = {"roles": roles, "shelters": [f"{n:0128d}" for n in range(100)], "users": ["u" * 128]}
    entered = {
        "message": {
            "messageId": "i" * 36,
            "type": "shelter_update",
            "envelope": '"' * messages.MAX_ENVELOPE_BYTES,
            "offline": "fallback",
        },
        "partition": {"scope": "user", "value": "u" * 128},
        "query": audiences.queries(target)["user"],
        "pace": {"rate": 950, "burst": 450, "credit": 450},
        "cursor": row,
        "counts": {"pages": 7},
        "startedAt": 1,
        # Left over from the previous page: every post failed.
        "undelivered": [{"connectionId": "c" * 20, "userId": "u" * 128, "reason": "failed"}] * 500,
    }
    result = {"Items": [row] * int(VARIABLES["page_size"]), "LastEvaluatedKey": row}
    expression = jsonata.Jsonata.jsonata(next(expressions(states["QueryPage"]["Output"])))
    left = expression.evaluate(None, {"states": {"input": entered, "result": result}})
    assert len(left["connections"]) == 500
    assert len(json.dumps(left, separators=(",", ":"))) < 256 * 1024  # [Step Functions quotas]


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("*/*.md")), ids=str)
def test_every_relative_link_of_a_document_has_a_target(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
