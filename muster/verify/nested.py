"""Runs the fanout machine nested in a STANDARD machine, as the broadcast machine does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from muster.verify.aws import Aws
from muster.verify.ledger import Ledger
from muster.verify.rows import Broken

NESTED_SECONDS = 120.0
"""How long a nested run may take: the check `long-run` makes one that takes about 45 s."""


async def run_nested(
    aws: Aws, ledger: Ledger, name: str, fanout_input: Mapping[str, Any]
) -> tuple[float, dict[str, Any]]:
    """Run fanout from a new STANDARD machine; return the seconds it took, and its output.

    The machine has broadcast's role, which allows starting fanout.
    """
    broadcast = aws.outputs.broadcast_state_machine_arn
    described = await aws.call("stepfunctions", "describe_state_machine", stateMachineArn=broadcast)
    partition = broadcast.split(":")[1]
    machine = f"{broadcast.rpartition(':')[0]}:{name}"
    run = {
        "Type": "Task",
        "Resource": f"arn:{partition}:states:::aws-sdk:sfn:startSyncExecution",
        "Arguments": {
            "StateMachineArn": aws.outputs.fanout_state_machine_arn,
            "Input": "{% $string($states.input) %}",
        },
        "TimeoutSeconds": 330,
        "End": True,
    }
    await ledger.note(f"machine:{machine}")
    await aws.call(
        "stepfunctions",
        "create_state_machine",
        name=name,
        roleArn=described["roleArn"],
        definition=json.dumps({"QueryLanguage": "JSONata", "StartAt": "Run", "States": {"Run": run}}),
    )
    began = time.monotonic()
    started = await aws.call(
        "stepfunctions", "start_execution", stateMachineArn=machine, input=json.dumps(fanout_input)
    )
    arn = started["executionArn"]
    ended = await aws.call("stepfunctions", "describe_execution", executionArn=arn)
    while ended["status"] == "RUNNING" and time.monotonic() - began < NESTED_SECONDS:
        await asyncio.sleep(1)
        ended = await aws.call("stepfunctions", "describe_execution", executionArn=arn)
    seconds = time.monotonic() - began
    child = json.loads(ended.get("output") or "{}")
    if ended["status"] != "SUCCEEDED" or child.get("Status") != "SUCCEEDED":
        raise Broken(
            f"The nested run ended after {seconds:.0f} s: {ended.get('error') or child.get('Error')}.",
            "Lower page_size, and report AWS's answer to Muster's maintainers.",
        )
    output: dict[str, Any] = json.loads(child["Output"])
    return seconds, output
