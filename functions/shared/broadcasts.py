"""Validates broadcast requests, and starts their executions."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from functions.shared import messages
from functions.shared.connections import MAX_ID_BYTES, id_problem
from functions.shared.errors import Conflict, Fault, InvalidMessage, TooLarge, aws_code
from functions.shared.settings import Roles
from functions.shared.validation import listed, validate


def check(request: Any, identifier: str, sent_at: float, roles: Roles) -> str:
    """Validate a broadcast request and return its envelope.

    `identifier` is the message's id if the request has none; `sent_at` is in epoch seconds.
    Raises `InvalidMessage` or `TooLarge` with every fault found.
    """
    validate("broadcast", request)
    known = ", ".join(sorted(roles))
    faults = [
        Fault(f"/target/roles/{n}", "is not a role of this deployment", f"use one of {known}")
        for n, role in enumerate(request["target"].get("roles", ()))
        if role not in roles
    ]
    faults += [
        Fault(pointer, problem, f"use an id of at most {MAX_ID_BYTES} bytes")
        for pointer, value in _ids(request)
        if (problem := id_problem(value))
    ]
    identifier = request.get("id", identifier)
    ahead = messages.id_time(identifier) - sent_at
    if not -messages.ID_BEHIND_SECONDS <= ahead <= messages.ID_AHEAD_SECONDS:
        # A resume reads only RESUME_OVERLAP_SECONDS again, and could miss the message.
        problem = (
            f"has a time more than {messages.ID_AHEAD_SECONDS} s after the broadcast's start"
            if ahead > 0
            else f"has a time more than {messages.ID_BEHIND_SECONDS} s before the broadcast's start"
        )
        fix = "set the clock and make the id when you start the broadcast, or omit the id"
        faults.append(Fault("/id", problem, fix))
    if faults:
        raise InvalidMessage(faults=listed(faults))
    envelope = messages.envelope(request, identifier, sent_at)
    size = len(envelope.encode())
    if size > messages.MAX_ENVELOPE_BYTES:
        problem = f"makes the message {size} bytes, more than {messages.MAX_ENVELOPE_BYTES}"
        raise TooLarge(faults=[Fault("/payload", problem, "send less, or a link to the rest")])
    return envelope


def _ids(request: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The ids of users and shelters in a request, as (pointer, id)."""
    for field in ("users", "shelters"):
        for n, value in enumerate(request["target"].get(field, ())):
            yield f"/target/{field}/{n}", value
    if "shelterId" in request:
        yield "/shelterId", request["shelterId"]
    if "userId" in request.get("sender", {}):
        yield "/sender/userId", request["sender"]["userId"]


FAILED = frozenset({"FAILED", "TIMED_OUT", "ABORTED"})

DESCRIBE_PAUSES = (0.2, 0.5, 1.0)
"""Seconds between attempts to describe an execution that has just started, because DescribeExecution is
eventually consistent [Step Functions API reference]."""


class Starter:
    """Starts executions of the broadcast state machine."""

    def __init__(self, stepfunctions: Any, state_machine_arn: str) -> None:
        """`stepfunctions` is a low-level client."""
        self._stepfunctions = stepfunctions
        self._state_machine_arn = state_machine_arn

    def start(self, name: str, request: Mapping[str, Any]) -> str:
        """Start an execution of this name for `request` and return the message's id.

        A name that was used before starts nothing. If the first request was the same, returns the id of its
        message, even if the sender's role has changed since. Raises `Conflict` if the first request was
        another one, or its execution failed. Step Functions remembers names for 90 days.
        """
        try:
            self._stepfunctions.start_execution(
                stateMachineArn=self._state_machine_arn, name=name, input=messages.serialise(request)
            )
        except ClientError as error:
            if aws_code(error) != "ExecutionAlreadyExists":
                raise
            execution = self._describe(name)
            first = json.loads(execution["input"])
            if execution["status"] in FAILED or _sent(first) != _sent(request):
                raise Conflict from None
            return str(first["id"])
        return str(request["id"])

    def _describe(self, name: str) -> Any:
        arn = self._state_machine_arn.replace(":stateMachine:", ":execution:") + f":{name}"
        for pause in DESCRIBE_PAUSES:
            try:
                return self._stepfunctions.describe_execution(executionArn=arn)
            except ClientError as error:
                if aws_code(error) != "ExecutionDoesNotExist":
                    raise
                time.sleep(pause)
        return self._stepfunctions.describe_execution(executionArn=arn)


def _sent(request: Mapping[str, Any]) -> str:
    """The part of a request that the client sent, as text, because 1 and True are equal in Python."""
    sent = {name: value for name, value in request.items() if name not in ("id", "sender")}
    return json.dumps(sent, sort_keys=True)
