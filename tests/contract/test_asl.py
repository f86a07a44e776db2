"""The state machines as text: what their graphs and expressions promise, without running them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonata
import pytest

from functions.shared import audiences, messages

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
    """A graph and every graph nested in it."""
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
def test_every_state_is_reached_and_every_transition_leads_somewhere(machine: str) -> None:
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
def test_every_state_says_what_it_does_and_how_it_ends(name: str, state: State) -> None:
    assert state.get("Comment")
    assert all(choice.get("Comment") for choice in state.get("Choices", ()))
    assert all(catcher.get("Comment") for catcher in state.get("Catch", ()))
    if state["Type"] not in ("Choice", "Fail"):
        assert ("Next" in state) != (state.get("End") is True)


@pytest.mark.parametrize(("name", "state"), TASKS)
def test_every_task_is_bounded_and_prepared_to_fail(name: str, state: State) -> None:
    assert state["TimeoutSeconds"] <= 330
    assert state.get("Retry") or state.get("Catch")
    for retrier in state.get("Retry", ()):
        assert retrier["JitterStrategy"] == "FULL"
        assert {"BackoffRate", "MaxDelaySeconds", "MaxAttempts", "IntervalSeconds"} <= set(retrier)
        assert "States.ALL" not in retrier["ErrorEquals"]  # some errors must not be repeated


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


def longest(state: State, errors: set[str]) -> float:
    """Seconds that a task takes when every attempt times out."""
    retrier = next(retrier for retrier in state["Retry"] if errors & set(retrier["ErrorEquals"]))
    pauses = [
        min(retrier["MaxDelaySeconds"], retrier["IntervalSeconds"] * retrier["BackoffRate"] ** attempt)
        for attempt in range(retrier["MaxAttempts"])
    ]
    return float((retrier["MaxAttempts"] + 1) * state["TimeoutSeconds"] + sum(pauses))


def test_the_longest_page_ends_before_an_express_execution_does() -> None:
    states = MACHINES["fanout"]["States"]
    deliver = states["Deliver"]["ItemProcessor"]["States"]["DeliverBatch"]
    timeout = {"States.Timeout"}
    floor = (states["PublishPage"], states["CountOfflineFailed"])
    page = sum(longest(state, timeout) for state in (deliver, states["Offline"], *floor))
    last_start = 45
    assert MACHINES["fanout"]["TimeoutSeconds"] == 300  # five minutes [Step Functions quotas]
    assert last_start + longest(states["QueryPage"], timeout) + page < MACHINES["fanout"]["TimeoutSeconds"]


def test_a_message_is_recorded_within_what_a_resume_reads_again() -> None:
    states = MACHINES["broadcast"]["States"]
    record = states["Record"]["ItemProcessor"]["States"]["RecordAudience"]
    timeout = {"States.Timeout"}
    assert longest(states["Accept"], timeout) + longest(record, timeout) < messages.RESUME_OVERLAP_SECONDS


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
        # What the page before left behind: everybody failed.
        "undelivered": [{"connectionId": "c" * 20, "userId": "u" * 128, "reason": "failed"}] * 500,
    }
    result = {"Items": [row] * int(VARIABLES["page_size"]), "LastEvaluatedKey": row}
    expression = jsonata.Jsonata.jsonata(next(expressions(states["QueryPage"]["Output"])))
    left = expression.evaluate(None, {"states": {"input": entered, "result": result}})
    assert len(left["connections"]) == 500
    assert len(json.dumps(left, separators=(",", ":"))) < 256 * 1024  # [Step Functions quotas]


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("*/*.md")), ids=str)
def test_every_relative_link_of_a_document_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
