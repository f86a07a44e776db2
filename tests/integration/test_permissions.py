"""Each role has exactly the permissions that its function or machine needs.

The emulator enforces the policies of the functions' roles, so everything that the other tests do is allowed.
Here each grant is removed once, and the function must fail. It does not enforce the machines' roles:
there the policy is compared with the definition.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from os import urandom
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from functions.shared import audiences
from functions.shared.messages import uuid7
from tests.support import ROOT
from tests.support.deployment import Deployment, Json
from tests.support.handshakes import handshake
from tests.support.sockets import websocket
from tests.support.variants import Grant, Variants, grants

# What every function may do beside its work: log and trace. The emulator does both without asking.
TELEMETRY = {"logs:CreateLogStream", "logs:PutLogEvents", "xray:PutTelemetryRecords", "xray:PutTraceSegments"}

# Granted for AWS, where it covers PublishBatch; the emulator asks for an action of that name instead.
NOT_ASKED_FOR = {("offline", "sns:Publish")}
ASKED_FOR_HERE = {"sns:PublishBatch"}

# What a machine may do beside its work: deliver logs and traces, as Step Functions asks for
# [Logging using CloudWatch Logs; AWS X-Ray and Step Functions].
MACHINE_TELEMETRY = {
    *(f"logs:{verb}LogDelivery" for verb in ("Create", "Delete", "Get", "Update")),
    *("logs:DescribeLogGroups", "logs:DescribeResourcePolicies", "logs:ListLogDeliveries"),
    "logs:PutResourcePolicy",
    *("xray:GetSamplingRules", "xray:GetSamplingTargets"),
    *("xray:PutTelemetryRecords", "xray:PutTraceSegments"),
}


def _connects(deployment: Deployment, function: str) -> bool:
    token = deployment.token(deployment.user().user_id)
    connection_id, answer = handshake(deployment, header=f"Bearer {token}", function=function)
    deployment.forget_connections([connection_id])
    return bool(answer.payload["statusCode"] == 200)


def _disconnects(deployment: Deployment, function: str) -> bool:
    connection_id = deployment.put_connection(deployment.user())
    deployment.invoke(
        function,
        {
            "requestContext": {
                "connectionId": connection_id,
                "eventType": "DISCONNECT",
                "routeKey": "$disconnect",
            }
        },
    )
    kept = deployment.connection(connection_id)
    deployment.forget_connections([connection_id])
    return kept is None


def _answers(deployment: Deployment, function: str) -> bool:
    user = deployment.user("first_responder")
    connection_id = deployment.put_connection(user)
    alert = {"action": "alert", "id": "a1", "target": {"users": [user.user_id]}, "payload": {}}
    frames: list[tuple[str, Json]] = [
        ("pong", {"action": "ping"}),
        ("renewed", {"action": "renew", "token": deployment.token(user.user_id)}),
        ("resumed", {"action": "resume"}),
        ("ack", alert),
        ("ack", alert),  # the second time the first execution is looked up
    ]
    answered = [deployment.default(connection_id, frame, function)["type"] for _, frame in frames]
    deployment.forget_connections([connection_id])
    return answered == [kind for kind, _ in frames] and _closes(deployment, function)


def _closes(deployment: Deployment, function: str) -> bool:
    """Return whether a client whose row is lost gets an error and is then disconnected."""
    user = deployment.user()
    with websocket(deployment, deployment.token(user.user_id)) as socket:
        (connection_id,) = deployment.connections_of(user.user_id)
        deployment.forget_connections([connection_id])
        deployment.invoke(
            function,
            {
                "requestContext": {
                    "connectionId": connection_id,
                    "eventType": "MESSAGE",
                    "routeKey": "$default",
                },
                "body": json.dumps({"action": "ping"}),
            },
        )
        told = False
        try:
            told = json.loads(socket.recv(timeout=1))["code"] == "unknown_connection"
            socket.recv(timeout=1)
        except ConnectionClosed:
            return told
        except TimeoutError:
            with suppress(deployment.gateway.exceptions.GoneException):
                deployment.gateway.delete_connection(ConnectionId=connection_id)
        return False


def _accepts(deployment: Deployment, function: str) -> bool:
    return True  # it is granted nothing, so nothing can be taken away


def _delivers(deployment: Deployment, function: str) -> bool:
    user = deployment.user()
    connection_id = deployment.put_connection(user)
    row = deployment.connection(connection_id) or {}
    connections = [{key: row[key] for key in ("connectionId", "userId", "connectedAt")}]
    batch = {"messageId": _message_id(), "type": "alert", "envelope": "{}", "connections": connections}
    result = deployment.invoke(function, batch).payload
    deployment.forget_connections([connection_id])
    return bool(result["gone"] == 1)


def _hands_over(deployment: Deployment, function: str) -> bool:
    message_id, user = _message_id(), deployment.user()
    gone = deployment.put_connection(user)
    batch = {
        "messageId": message_id,
        "type": "alert",
        "envelope": json.dumps(
            {
                "type": "alert",
                "id": message_id,
                "sentAt": "2026-11-23T08:15:30.125Z",
                "sender": {"service": "test"},
                "payload": {},
            }
        ),
        "claim": "one",
        "undelivered": [{"userId": user.user_id, "reason": "gone", "connectionId": gone}],
    }
    answer = deployment.invoke(function, batch).payload
    kept = deployment.connection(gone)
    deployment.forget_connections([gone])
    return answer == {"offline": 1, "offlineFailed": 0} and kept is None


def _message_id() -> str:
    return uuid7(time.time(), urandom(10))


WORKS: dict[str, Callable[[Deployment, str], bool]] = {
    "connect": _connects,
    "disconnect": _disconnects,
    "default": _answers,
    "accept": _accepts,
    "deliver": _delivers,
    "offline": _hands_over,
}
"""Everything that a function may do, done once by the function or by a copy: whether all of it succeeded."""


def test_every_function_is_tried(deployment: Deployment) -> None:
    assert set(WORKS) == set(deployment.outputs.function_names)


@pytest.mark.parametrize("function", WORKS)
def test_a_function_needs_each_of_its_permissions(
    deployment: Deployment, variants: Variants, function: str
) -> None:
    works = WORKS[function]
    assert works(deployment, function)

    role = variants.role_of(function)
    needless = [
        grant
        for grant in grants(variants.policy(role))
        if grant[0] not in TELEMETRY
        and (function, grant[0]) not in NOT_ASKED_FOR
        and works(deployment, variants.function(function, without=grant))
    ]

    assert needless == []


@pytest.mark.parametrize("machine", ["broadcast", "fanout"])
def test_a_machine_may_do_what_its_states_do(
    deployment: Deployment, variants: Variants, machine: str
) -> None:
    arn = getattr(deployment.outputs, f"{machine}_state_machine_arn")
    described = deployment.stepfunctions.describe_state_machine(stateMachineArn=arn)
    granted = set(grants(variants.policy(described["roleArn"])))

    telemetry = {(action, "*") for action in MACHINE_TELEMETRY}
    assert telemetry <= granted
    assert granted - telemetry == {
        grant
        for task in _tasks(json.loads(described["definition"]))
        for grant in _needed(deployment, task["Resource"], task["Arguments"])
    }


@pytest.mark.parametrize("name", [*WORKS, "broadcast", "fanout"])
def test_roles_have_the_permissions_that_the_security_page_lists(
    deployment: Deployment, variants: Variants, name: str
) -> None:
    beside = TELEMETRY if name in WORKS else MACHINE_TELEMETRY
    actions = {action for action, _ in grants(variants.policy(_role(deployment, variants, name)))}
    assert actions - beside - ASKED_FOR_HERE == _reviewed()[name]


@pytest.mark.parametrize("name", [*WORKS, "broadcast", "fanout"])
def test_a_role_is_assumed_by_its_service_alone_for_this_account(
    deployment: Deployment, variants: Variants, name: str
) -> None:
    role = _role(deployment, variants, name).rpartition("/")[2]
    (statement,) = deployment.iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]["Statement"]
    machines, _, _ = deployment.outputs.broadcast_state_machine_arn.rpartition(":")
    account = {"aws:SourceAccount": machines.split(":")[4]}
    service, condition = "lambda", {"StringEqualsIfExists": account}
    if name not in WORKS:
        service = "states"
        condition = {"ArnLike": {"aws:SourceArn": f"{machines}:*"}, "StringEquals": account}
    assert statement == {
        "Effect": "Allow",
        "Principal": {"Service": f"{service}.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": condition,
    }


def _role(deployment: Deployment, variants: Variants, name: str) -> str:
    if name in WORKS:
        return variants.role_of(name)
    arn = getattr(deployment.outputs, f"{name}_state_machine_arn")
    return str(deployment.stepfunctions.describe_state_machine(stateMachineArn=arn)["roleArn"])


def _reviewed() -> dict[str, set[str]]:
    """Return the actions of each role in docs/security.md's table; an empty cell repeats the role."""
    roles: dict[str, set[str]] = {}
    name = ""
    table = (
        (ROOT / "docs" / "security.md").read_text().partition("| role | may | on |\n")[2].partition("\n\n")[0]
    )
    for line in table.splitlines()[1:]:
        role, action = (cell.strip(" `") for cell in line.split("|")[1:3])
        name = role or name
        roles.setdefault(name, set()).update({action} - {""})
    return roles


def _tasks(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for state in graph["States"].values():
        if state["Type"] == "Task":
            yield state
        for inner in [*state.get("Branches", ()), *filter(None, [state.get("ItemProcessor")])]:
            yield from _tasks(inner)


def _needed(deployment: Deployment, resource: str, arguments: Any) -> list[Grant]:
    """Return what a task's role must be allowed. A kind of task that is new here fails until it is added."""
    match resource.removeprefix("arn:aws:states:::"):
        case "lambda:invoke":
            return [("lambda:InvokeFunction", arguments["FunctionName"])]
        case "dynamodb:putItem":
            return [("dynamodb:PutItem", _table_arn(deployment, arguments["TableName"]))]
        case "aws-sdk:dynamodb:query":
            # The arguments are one expression; the index is in the input, from the queries that Accept plans.
            table = deployment.outputs.connections_table
            assert f"'TableName': '{table}'" in arguments
            indexes = {index.name for index in audiences.INDEXES.values()}
            return [("dynamodb:Query", f"{_table_arn(deployment, table)}/index/{name}") for name in indexes]
        case "aws-sdk:sfn:startSyncExecution":
            return [("states:StartSyncExecution", arguments["StateMachineArn"])]
        case "sns:publish":
            return [("sns:Publish", arguments["TopicArn"])]
        case "aws-sdk:cloudwatch:putMetricData":
            return [("cloudwatch:PutMetricData", "*")]
        case other:
            raise AssertionError(f"what does a task of {other} need?")


def _table_arn(deployment: Deployment, name: str) -> str:
    return str(deployment.dynamodb.describe_table(TableName=name)["Table"]["TableArn"])
