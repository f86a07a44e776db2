"""The cost of a whole broadcast by size, through the real state machines on the embedded stack.

Connections exist only as rows, and a stub replaces the `@connections` endpoint. Counts (executions,
transitions, invocations, units, bytes) are the same on AWS. Seconds are this machine's. The durations that
AWS bills are measured here too, so the dollars are an upper bound where AWS is faster.
"""

import argparse
import contextlib
import itertools
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import callbacks
from muster import Broadcaster
from muster.local.stack import Stack
from muster.outputs import Outputs

PRICES = json.loads(Path(__file__).with_name("prices.json").read_text())
PAGE_SIZE, BATCH_SIZE, SHARDS = 500, 250, 4
DELIVER_GB = 512 / 1024
EXPRESS_GB = 0.064  # the minimum that is billed for an Express workflow [Step Functions pricing]
STATE_LIMIT = 256 * 1024
EVENT_LIMIT = 25_000
# History events: a task has 5, another state 2, a Map iteration 2, a Map or a Parallel 4. A run is RunFanOut
# and PartitionDone?; a partition is an iteration and its last Pass; EVENTS_APART is all the rest.
EVENTS_PER_RUN, EVENTS_PER_PARTITION, EVENTS_APART = 7, 4, 45
EVENTS_PER_TASK_EACH = 7

# The default quota on AWS for a broadcast to 100,000, and the shares of it that this machine can serve.
QUOTA_RATE, QUOTA_BURST, QUOTA_AUDIENCE = 10_000, 5_000, 100_000
QUOTA_SCALES = (0.1, 0.05, 0.02)


@dataclass
class Measured:
    """What one broadcast used. AWS bills it in addition to API Gateway's price per message."""

    way: str
    audience: int
    seconds: float
    invocations: int
    gb_seconds: float
    read_units: float
    write_units: float = 0
    executions: int = 0
    transitions: int = 0
    express_seconds: float = 0
    express_runs: int = 0
    largest_state: int = 0
    events: int = 0

    @property
    def together(self) -> float:
        """Dollars per million deliveries, without API Gateway."""
        return sum(self.dollars.values())

    @property
    def dollars(self) -> dict[str, float]:
        """Dollars per million deliveries, by service, without API Gateway."""
        per_million = 1e6 / self.audience
        return {
            "Lambda": per_million
            * (self.invocations * PRICES["lambda_request"] + self.gb_seconds * PRICES["lambda_gb_second"]),
            "Step Functions": per_million
            * (
                self.transitions * PRICES["step_functions_transition"]
                + self.express_runs * PRICES["express_request"]
                + self.express_seconds * EXPRESS_GB * PRICES["express_gb_second"]
            ),
            "DynamoDB": per_million
            * (
                self.read_units * PRICES["dynamodb_read_unit"]
                + self.write_units * PRICES["dynamodb_write_unit"]
            ),
        }


def main() -> int:
    """Run the benchmark. Return 0 when every target is met."""
    parser = argparse.ArgumentParser(prog="python -m bench.broadcast", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="audiences")
    options = parser.parse_args()
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` stops the stack
    met: dict[str, bool] = {}
    variables = {
        "page_size": PAGE_SIZE,
        "batch_size": BATCH_SIZE,
        "audience_shards": SHARDS,
        "partition_concurrency": SHARDS,
        "batch_concurrency": 2,
        "post_rate": 1_000_000,
        "post_burst": 1_000_000,
    }
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as folder:
        stack = Stack(Path(folder), port=0, variables=variables)
        try:
            with timed(console, "the local stack is up"):
                outputs = stack.up()
            measured: list[Measured] = []
            with callbacks.running() as stub:
                post_to(outputs, stub)
                fill(outputs, min(options.sizes))
                with timed(console, "the functions are warm"):
                    broadcast(outputs)
                for size in options.sizes:
                    with timed(console, f"{size:,} connections are stored"):
                        fill(outputs, size)
                    for way, (run, up_to) in WAYS.items():
                        if size <= up_to:
                            with timed(console, f"{size:,} reached: {way}"):
                                measured.append(run(outputs, stub, size))
            report(console, measured, met)
            fastest = max(run.audience / run.seconds for run in measured if run.way == "muster")
            # The machine must be twice as fast as the quota, so that the quota is the bottleneck.
            affordable = (scale for scale in QUOTA_SCALES if fastest >= 2 * QUOTA_RATE * scale)
            scale = next(affordable, QUOTA_SCALES[-1])
            rate, burst = QUOTA_RATE * scale, QUOTA_BURST * scale
            limits = {"post_rate": rate * 0.95, "post_burst": burst * 0.9}
            stack = Stack(Path(folder), variables={**variables, **limits})
            with timed(console, "the stack is set for the quota"):
                outputs = stack.up()
            with callbacks.running(rate, burst) as stub:
                post_to(outputs, stub)
                fill(outputs, round(QUOTA_AUDIENCE * scale))
                under_quota(console, outputs, stub, met, scale)
        finally:
            stack.down()
    for text, is_met in met.items():
        console.print(f"{'met   ' if is_met else 'MISSED'}  {text}", style="green" if is_met else "red")
    return 0 if all(met.values()) else 1


@contextlib.contextmanager
def timed(console: Console, title: str) -> Iterator[None]:
    """Show a title while it runs, then the seconds."""
    started = time.perf_counter()
    with console.status(title):
        yield
    console.print(f"{time.perf_counter() - started:6.1f} s  {title}", highlight=False)


def post_to(outputs: Outputs, stub: callbacks.Callbacks) -> None:
    """Let Deliver post to the stub."""
    functions = outputs.client("lambda")
    name = outputs.function_names["deliver"]
    variables = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    variables["CONNECTIONS_ENDPOINT"] = stub.endpoint
    functions.update_function_configuration(FunctionName=name, Environment={"Variables": variables})


def fill(outputs: Outputs, count: int) -> None:
    """Add or delete rows until the connections table has exactly `count`, spread over the shards."""
    table = outputs.resource("dynamodb").Table(outputs.connections_table)
    pages = outputs.client("dynamodb").get_paginator("scan")
    counted = pages.paginate(TableName=outputs.connections_table, Select="COUNT")
    have = sum(page["Count"] for page in counted)
    expires = int(time.time()) + 86_400

    with table.batch_writer() as writer:
        for n in range(count, have):
            writer.delete_item(Key={"connectionId": _connection_id(n)})
        for n in range(have, count):
            writer.put_item(
                Item={
                    "connectionId": _connection_id(n),
                    "userId": f"user-{n:07d}",
                    "email": f"user-{n:07d}@example.org",
                    "role": "resident",
                    "roleShard": f"resident#{n % SHARDS}",
                    "shard": f"all#{n % SHARDS}",
                    "connectedAt": "2026-01-01T00:00:00.000Z",
                    "lastSeenAt": "2026-01-01T00:00:00.000Z",
                    "ttl": expires,
                }
            )


def _connection_id(n: int) -> str:
    return f"L0SM{n:011d}="


def broadcast(outputs: Outputs) -> tuple[str, Any]:
    """Broadcast to all. Return the execution's ARN and the receipt."""
    broadcaster = Broadcaster.from_outputs(outputs)
    execution = broadcaster.start("alert", {"all": True}, {"text": "x" * 400})
    return execution.arn, broadcaster.wait(execution, timeout=900)


def muster(outputs: Outputs, stub: callbacks.Callbacks, size: int) -> Measured:
    """Broadcast to all, and count everything that AWS bills."""
    stub.counted()
    billed_from = int(time.time() * 1000)
    children_before = {
        child["executionArn"] for child in _executions(outputs, outputs.fanout_state_machine_arn)
    }
    arn, receipt = broadcast(outputs)
    counted = stub.counted()
    assert receipt.audience == receipt.delivered == size == counted.taken, (receipt, counted)
    children = [
        child
        for child in _executions(outputs, outputs.fanout_state_machine_arn)
        if child["executionArn"] not in children_before
    ]
    milliseconds = _billed_milliseconds(outputs, "deliver", billed_from)
    runs, partitions = len(children), receipt.partitions
    return Measured(
        way="muster",
        audience=size,
        seconds=receipt.duration_ms / 1000,
        invocations=1 + len(milliseconds),
        gb_seconds=sum(milliseconds) / 1000 * DELIVER_GB,
        # Eventually consistent: half a unit per 4 KB of index rows, before projection [DynamoDB].
        read_units=receipt.pages * math.ceil(size / receipt.pages * INDEX_ROW_BYTES / 4096) / 2,
        write_units=2,  # Claim and Record
        executions=1 + runs,
        # Accept, Accepted?, Claim, Record with one audience, Reach, FanOut, Notify?, NotNotified, Summarise.
        # Each partition adds one, and each run of its child adds RunFanOut and PartitionDone?.
        transitions=10 + partitions + 2 * runs,
        express_seconds=sum((child["stopDate"] - child["startDate"]).total_seconds() for child in children),
        express_runs=runs,
        largest_state=max(
            len(state)
            for run in (arn, *(c["executionArn"] for c in children))
            for state in _states(outputs, run)
        ),
        events=EVENTS_APART + partitions * EVENTS_PER_PARTITION + runs * EVENTS_PER_RUN,
    )


INDEX_ROW_BYTES = 190
"""A row of AllIndex: its keys, userId, role, connectedAt and ttl with their names, and the 100 bytes that
DynamoDB adds for each indexed item."""
ROW_BYTES = 250
"""A row of the table."""


def sample(outputs: Outputs, stub: callbacks.Callbacks, size: int) -> Measured:
    """The way of AWS's sample: scan the table, then post to each connection with the SDK, one by one."""
    stub.counted()
    started = time.perf_counter()
    gateway = outputs.session().client("apigatewaymanagementapi", endpoint_url=stub.endpoint)
    pages = outputs.client("dynamodb").get_paginator("scan").paginate(TableName=outputs.connections_table)
    for row in itertools.chain.from_iterable(page["Items"] for page in pages):
        gateway.post_to_connection(ConnectionId=row["connectionId"]["S"], Data=b"x" * 600)
    seconds = time.perf_counter() - started
    assert stub.counted().taken == size
    return Measured(
        way="scan, one Lambda, SDK",
        audience=size,
        seconds=seconds,
        invocations=1,
        gb_seconds=seconds * DELIVER_GB,
        read_units=size * ROW_BYTES / 4096 / 2,
    )


def task_each(outputs: Outputs, stub: callbacks.Callbacks, size: int) -> Measured:
    """A simple Standard workflow: scan a page, then run a Map with one task per connection."""
    machines = outputs.client("stepfunctions")
    role = machines.describe_state_machine(stateMachineArn=outputs.broadcast_state_machine_arn)["roleArn"]
    machine = machines.create_state_machine(
        name=f"task-each-{size}", definition=json.dumps(_task_each_definition(outputs)), roleArn=role
    )["stateMachineArn"]
    stub.counted()
    billed_from = int(time.time() * 1000)
    arn = machines.start_execution(stateMachineArn=machine)["executionArn"]
    while (execution := machines.describe_execution(executionArn=arn))["status"] == "RUNNING":
        time.sleep(0.2)
    assert execution["status"] == "SUCCEEDED", execution
    assert stub.counted().taken == size
    milliseconds = _billed_milliseconds(outputs, "deliver", billed_from)
    largest_state = max(len(state) for state in _states(outputs, arn))
    machines.delete_state_machine(stateMachineArn=machine)
    pages = math.ceil(size / PAGE_SIZE)
    return Measured(
        way="Standard Map, a task each",
        audience=size,
        seconds=(execution["stopDate"] - execution["startDate"]).total_seconds(),
        invocations=len(milliseconds),
        gb_seconds=sum(milliseconds) / 1000 * DELIVER_GB,
        read_units=size * ROW_BYTES / 4096 / 2,
        executions=1,
        transitions=size + 3 * pages + 1,  # ScanPage, PostToEach and MorePages? per page, and Done
        largest_state=largest_state,
        events=size * EVENTS_PER_TASK_EACH + pages * 11 + 4,
    )


def _task_each_definition(outputs: Outputs) -> dict[str, Any]:
    page = json.dumps({"TableName": outputs.connections_table, "Limit": PAGE_SIZE})
    after = "$states.input.cursor ? {'ExclusiveStartKey': $states.input.cursor} : {}"
    row = "{'connectionId': connectionId.S, 'userId': userId.S, 'connectedAt': connectedAt.S}"
    rows = f"[$states.result.Items.{row}]"
    post = {
        "messageId": "01970000-0000-7000-8000-000000000000",
        "type": "alert",
        "envelope": json.dumps({"text": "x" * 600}),
        "connections": ["{% $states.input %}"],
        "pace": {"rate": 1_000_000, "credit": 1},
    }
    invoke = {
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke",
        "Arguments": {"FunctionName": outputs.function_names["deliver"], "Payload": post},
        "Output": {},
        "End": True,
    }
    return {
        "QueryLanguage": "JSONata",
        "StartAt": "ScanPage",
        "States": {
            "ScanPage": {
                "Type": "Task",
                "Resource": "arn:aws:states:::aws-sdk:dynamodb:scan",
                "Arguments": f"{{% $merge([{page}, {after}]) %}}",
                "Output": f"{{% {{'cursor': $states.result.LastEvaluatedKey, 'rows': {rows}}} %}}",
                "Next": "PostToEach",
            },
            "PostToEach": {
                "Type": "Map",
                "Items": "{% $states.input.rows %}",
                "MaxConcurrency": 40,
                "ItemProcessor": {"StartAt": "Post", "States": {"Post": invoke}},
                "Output": {"cursor": "{% $states.input.cursor ? $states.input.cursor : null %}"},
                "Next": "MorePages?",
            },
            "MorePages?": {
                "Type": "Choice",
                "Choices": [{"Condition": "{% $states.input.cursor != null %}", "Next": "ScanPage"}],
                "Default": "Done",
            },
            "Done": {"Type": "Succeed"},
        },
    }


WAYS: dict[str, tuple[Callable[[Outputs, callbacks.Callbacks, int], Measured], float]] = {
    "muster": (muster, math.inf),
    "scan, one Lambda, SDK": (sample, 10_000),
    "Standard Map, a task each": (task_each, 1_000),
}
"""Each way, and the largest audience it is measured with. Its cost per delivery is the same beyond that."""


def report(console: Console, measured: Sequence[Measured], met: dict[str, bool]) -> None:
    """Print the measurements, and add the targets to `met`."""
    columns: dict[str, Callable[[Measured], str]] = {
        "audience": lambda run: f"{run.audience:,}",
        "s": lambda run: f"{run.seconds:.1f}",
        "posts/s": lambda run: f"{run.audience / run.seconds:,.0f}",
        "executions": lambda run: f"{run.executions:,}",
        "transitions": lambda run: f"{run.transitions:,}",
        "events": lambda run: f"{run.events:,}",
        "Lambda": lambda run: f"{run.invocations:,}",
        "GB-s": lambda run: f"{run.gb_seconds:.1f}",
        "RCU": lambda run: f"{run.read_units:.0f}",
        "state KiB": lambda run: f"{run.largest_state / 1024:.0f}",
    }
    _print(console, "A broadcast to all, on the embedded stack", measured, columns)
    message = 1e6 * PRICES["api_gateway_message"]
    columns = {
        "audience": lambda run: f"{run.audience:,}",
        "Lambda": lambda run: f"{run.dollars['Lambda']:.3f}",
        "Step Functions": lambda run: f"{run.dollars['Step Functions']:.3f}",
        "DynamoDB": lambda run: f"{run.dollars['DynamoDB']:.3f}",
        "together": lambda run: f"{run.together:.3f}",
        "of API Gateway": lambda run: f"{run.together / message:.1%}",
    }
    title = f"Dollars per million deliveries, in addition to API Gateway's {message:.2f}"
    _print(console, title, measured, columns)

    ours = [run for run in measured if run.way == "muster"]
    smallest, largest = ours[0], ours[-1]
    if len(ours) > 1:
        bills = [run.together * run.audience / 1e6 for run in (smallest, largest)]
        each = (bills[1] - bills[0]) / (largest.audience - smallest.audience)
        fixed = bills[0] - each * smallest.audience
        console.print(f"A broadcast costs ${fixed:.5f}, plus ${each * 1e6:.4f} per million deliveries")
        for run in ours[1:-1]:
            expected = (fixed + each * run.audience) / run.audience * 1e6
            met[f"at {run.audience:,} the cost is within a fifth of that line"] = (
                abs(run.together / expected - 1) <= 0.2
            )
    per_run = largest.audience / largest.express_runs
    events = EVENTS_APART + SHARDS * EVENTS_PER_PARTITION + 1_000_000 / per_run * EVENTS_PER_RUN
    console.print(
        f"At 1,000,000: a child run carries {per_run:,.0f} connections here, so "
        f"{1_000_000 / per_run:,.0f} runs and about {events:,.0f} events of {EVENT_LIMIT:,}\n"
    )
    met[f"at {largest.audience:,} all other costs are under 5% of API Gateway's price"] = (
        largest.together < 0.05 * message
    )
    met["no state exceeds 256 KiB"] = max(run.largest_state for run in ours) < STATE_LIMIT
    met["at 1,000,000 no execution has half of 25,000 events"] = events < EVENT_LIMIT / 2


def _print(
    console: Console, title: str, rows: Sequence[Measured], columns: dict[str, Callable[[Measured], str]]
) -> None:
    table = Table("way", title=title)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.way, *(text(row) for text in columns.values()))
    # Wide enough for the table, even if the output is not a terminal.
    Console(file=console.file, width=max(console.width, 132)).print(table)


def under_quota(
    console: Console, outputs: Outputs, stub: callbacks.Callbacks, met: dict[str, bool], scale: float
) -> None:
    """Time a broadcast under a quota scaled to this machine. Compare it with the quota's minimum."""
    rate, burst = QUOTA_RATE * scale, QUOTA_BURST * scale
    audience = round(QUOTA_AUDIENCE * scale)
    broadcast(outputs)
    stub.counted()
    time.sleep(burst / rate)  # the token bucket refills
    _, receipt = broadcast(outputs)
    counted = stub.counted()
    minimum = (audience - burst) / rate
    refused = counted.refused / (counted.taken + counted.refused)
    console.print(
        f"Quota scaled to {scale:.0%} for this machine ({rate:,.0f}/s, burst {burst:,.0f}), "
        f"{audience:,} connections: "
        f"{counted.seconds:.2f} s from the first post to the last, the minimum is {minimum:.2f} s; "
        f"{refused:.2%} answered 429; delivered {receipt.delivered:,}, failed {receipt.failed:,}\n"
    )
    met["under the quota at most 1.15 times the minimum"] = counted.seconds <= 1.15 * minimum
    met["under the quota fewer than 1% of the posts get 429"] = refused < 0.01
    met["under the quota every connection is delivered to"] = receipt.delivered == audience


def _executions(outputs: Outputs, machine: str) -> list[dict[str, Any]]:
    pages = outputs.client("stepfunctions").get_paginator("list_executions").paginate(stateMachineArn=machine)
    return [dict(execution) for page in pages for execution in page["executions"]]


def _states(outputs: Outputs, execution: str) -> Iterator[str]:
    """Yield the inputs and outputs of an execution's states."""
    pages = (
        outputs.client("stepfunctions")
        .get_paginator("get_execution_history")
        .paginate(executionArn=execution)
    )
    for page in pages:
        for event in page["events"]:
            for details in event.values():
                if isinstance(details, dict):
                    yield from (details[key] for key in ("input", "output") if key in details)


def _billed_milliseconds(outputs: Outputs, function: str, since: int) -> list[int]:
    """Return the billed duration of each invocation since then, from the REPORT lines of the log."""
    pages = outputs.client("logs").get_paginator("filter_log_events")
    events = pages.paginate(
        logGroupName=outputs.log_groups[function], startTime=since, filterPattern="REPORT"
    )
    return [
        int(event["message"].split("Billed Duration: ")[1].split()[0])
        for page in events
        for event in page["events"]
        if "Billed Duration" in event["message"]
    ]


if __name__ == "__main__":
    sys.exit(main())
