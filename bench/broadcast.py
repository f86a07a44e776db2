"""What a whole broadcast costs and how it grows, through the real state machines on the embedded stack.

Connections are rows only; a stub stands for `@connections`. Counts (executions, transitions, invocations,
units, bytes) are those of the run and hold on AWS; seconds are this machine's. Durations that AWS bills are
taken from the run too, so the dollars are an upper bound wherever AWS is faster than two shared cores.
"""

import argparse
import itertools
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import callbacks
from muster import Broadcaster
from muster.outputs import Outputs
from muster.stack import Stack

PRICES = json.loads(Path(__file__).with_name("prices.json").read_text())
PAGE_SIZE, BATCH_SIZE, SHARDS = 500, 250, 4
DELIVER_GB = 512 / 1024
EXPRESS_GB = 0.064  # the least that an Express workflow is billed for [Step Functions pricing]
STATE_LIMIT = 256 * 1024
EVENT_LIMIT = 25_000
# A task leaves 5 events in a history, another state 2, a Map iteration 2 and a Map or a Parallel 4: RunFanOut
# and PartitionDone?; an iteration and its last Pass; all the rest.
EVENTS_PER_RUN, EVENTS_PER_PARTITION, EVENTS_APART = 7, 4, 40

# The quota that a broadcast of 100,000 meets on AWS, and the part of it that this machine can serve.
QUOTA_RATE, QUOTA_BURST, QUOTA_AUDIENCE, QUOTA_SCALE = 10_000, 5_000, 100_000, 0.1


@dataclass
class Measured:
    """One broadcast: what it took, and what AWS would bill beside API Gateway's own price per message."""

    way: str
    audience: int
    seconds: float
    executions: int
    transitions: int
    express_seconds: float
    express_runs: int
    invocations: int
    gb_seconds: float
    read_units: float
    write_units: float
    largest_state: int
    events: int

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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack is taken down then too
    met: dict[str, bool] = {}
    rate, burst = QUOTA_RATE * QUOTA_SCALE, QUOTA_BURST * QUOTA_SCALE
    variables = {
        "page_size": PAGE_SIZE,
        "batch_size": BATCH_SIZE,
        "audience_shards": SHARDS,
        "partition_concurrency": SHARDS,
        "batch_concurrency": 2,
        "post_rate": 1_000_000,
        "post_burst": 1_000_000,
    }
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as folder, console.status("") as status:
        status.update("bringing up the local stack")
        stack = Stack(Path(folder), port=0, variables=variables)
        try:
            outputs = stack.up()
            measured = []
            with callbacks.running() as stub:
                post_to(outputs, stub)
                broadcast(outputs)  # warms the functions
                for size in options.sizes:
                    status.update(f"a broadcast to {size:,}")
                    fill(outputs, size)
                    measured.append(measure(outputs, stub, size))
                    status.update("the AWS sample's way")
                    if size <= 10_000:
                        measured.append(sample(outputs, stub, size))
            report(console, measured, met)
            status.update("the same stack under a quota")
            stack = Stack(
                Path(folder),
                variables={**variables, "post_rate": rate * 0.95, "post_burst": burst * 0.9},
            )
            outputs = stack.up()
            with callbacks.running(rate, burst) as stub:
                post_to(outputs, stub)
                fill(outputs, int(QUOTA_AUDIENCE * QUOTA_SCALE))
                under_quota(console, outputs, stub, met)
        finally:
            stack.down()
    for text, holds in met.items():
        console.print(f"{'met   ' if holds else 'MISSED'}  {text}", style="green" if holds else "red")
    return 0 if all(met.values()) else 1


def post_to(outputs: Outputs, stub: callbacks.Callbacks) -> None:
    """Have Deliver post to the stub."""
    functions = outputs.client("lambda")
    name = outputs.function_names["deliver"]
    variables = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    variables["CONNECTIONS_ENDPOINT"] = stub.endpoint
    functions.update_function_configuration(FunctionName=name, Environment={"Variables": variables})


def fill(outputs: Outputs, count: int) -> None:
    """Leave exactly `count` live rows in the connections table, spread over the shards."""
    table = outputs.resource("dynamodb").Table(outputs.connections_table)
    have = outputs.client("dynamodb").scan(TableName=outputs.connections_table, Select="COUNT")["Count"]
    expires = int(time.time()) + 86_400

    def put(numbers: Sequence[int]) -> None:
        with table.batch_writer() as writer:
            for n in numbers:
                writer.put_item(
                    Item={
                        "connectionId": f"L0SM{n:011d}=",
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

    for start in range(have, count, 1_000):
        put(range(start, min(start + 1_000, count)))


def broadcast(outputs: Outputs) -> tuple[str, Any]:
    """Broadcast to everybody; return the execution's ARN and the receipt."""
    broadcaster = Broadcaster.from_outputs(outputs)
    execution = broadcaster.start("alert", {"all": True}, {"text": "x" * 400})
    return execution.arn, broadcaster.wait(execution, timeout=900)


def measure(outputs: Outputs, stub: callbacks.Callbacks, size: int) -> Measured:
    """One broadcast to everybody, and everything that AWS would have counted of it."""
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
    all_runs = [arn, *(child["executionArn"] for child in children)]
    states = [state for run in all_runs for state in _states(outputs, run)]
    milliseconds = _billed_milliseconds(outputs, "deliver", billed_from)
    runs, partitions = len(children), receipt.partitions
    return Measured(
        way="muster",
        audience=size,
        seconds=receipt.duration_ms / 1000,
        executions=1 + runs,
        # Accept, Accepted?, Record with one audience, Reach, FanOut, Notify?, NotNotified and Summarise; a
        # partition ends once, and each run of its child is RunFanOut and PartitionDone?.
        transitions=9 + partitions + 2 * runs,
        express_seconds=sum((child["stopDate"] - child["startDate"]).total_seconds() for child in children),
        express_runs=runs,
        invocations=1 + len(milliseconds),
        gb_seconds=sum(milliseconds) / 1000 * DELIVER_GB,
        # Eventually consistent: half a unit for 4 KB of whole index rows, before projection [DynamoDB].
        read_units=receipt.pages * math.ceil(min(size, PAGE_SIZE) * INDEX_ROW_BYTES / 4096) / 2,
        write_units=1,
        largest_state=max(len(state) for state in states),
        events=EVENTS_APART + partitions * EVENTS_PER_PARTITION + runs * EVENTS_PER_RUN,
    )


INDEX_ROW_BYTES = 190
"""A row of AllIndex: its keys, userId, role, connectedAt and ttl with their names, and 100 bytes of overhead
that DynamoDB counts for each indexed item."""


def sample(outputs: Outputs, stub: callbacks.Callbacks, size: int) -> Measured:
    """What AWS's own sample does: scan the table, then post to each with the SDK, one after the other."""
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
        executions=0,
        transitions=0,
        express_seconds=0,
        express_runs=0,
        invocations=1,
        gb_seconds=seconds * DELIVER_GB,
        read_units=size * 250 / 4096 / 2,
        write_units=0,
        largest_state=0,
        events=0,
    )


def report(console: Console, measured: Sequence[Measured], met: dict[str, bool]) -> None:
    """Print what was measured, and note the targets."""
    table = Table(title="A broadcast to everybody, on the embedded stack")
    for heading in (
        "way",
        "audience",
        "s",
        "posts/s",
        "exec.",
        "transitions",
        "Lambda",
        "GB-s",
        "RCU",
        "state KiB",
    ):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for run in measured:
        table.add_row(
            run.way,
            f"{run.audience:,}",
            f"{run.seconds:.1f}",
            f"{run.audience / run.seconds:,.0f}",
            str(run.executions),
            str(run.transitions),
            str(run.invocations),
            f"{run.gb_seconds:.1f}",
            f"{run.read_units:.0f}",
            f"{run.largest_state / 1024:.0f}",
        )
    console.print(table)
    table = Table(title="Dollars per million deliveries, beside API Gateway's own 1.00")
    for heading in ("way", "audience", "Lambda", "Step Functions", "DynamoDB", "together", "of API Gateway"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    message = 1e6 * PRICES["api_gateway_message"]
    for run in measured:
        together = sum(run.dollars.values())
        amounts = [f"{amount:.3f}" for amount in run.dollars.values()]
        table.add_row(run.way, f"{run.audience:,}", *amounts, f"{together:.3f}", f"{together / message:.1%}")
    console.print(table)

    ours = [run for run in measured if run.way == "muster"]
    largest = ours[-1]
    costs = [sum(run.dollars.values()) for run in ours]
    per_run = largest.audience / largest.express_runs
    events = EVENTS_APART + SHARDS * EVENTS_PER_PARTITION + 1_000_000 / per_run * EVENTS_PER_RUN
    console.print(
        f"At 1,000,000: a child run carries {per_run:,.0f} connections here, so "
        f"{1_000_000 / per_run:,.0f} runs and about {events:,.0f} events of {EVENT_LIMIT:,}\n"
    )
    met["cost per delivery does not grow with the audience"] = costs[-1] <= costs[0]
    met["everything but API Gateway's price stays under 5% of it, at the largest size"] = (
        costs[-1] < 0.05 * message
    )
    met["no state passes 256 KiB"] = max(run.largest_state for run in ours) < STATE_LIMIT
    met["no execution nears 25,000 events at 1,000,000"] = events < EVENT_LIMIT / 2


def under_quota(console: Console, outputs: Outputs, stub: callbacks.Callbacks, met: dict[str, bool]) -> None:
    """Time a broadcast under the quota, scaled to this machine, against the floor that the quota sets."""
    rate, burst = QUOTA_RATE * QUOTA_SCALE, QUOTA_BURST * QUOTA_SCALE
    audience = int(QUOTA_AUDIENCE * QUOTA_SCALE)
    broadcast(outputs)
    stub.counted()
    time.sleep(burst / rate)  # the bucket fills again
    _, receipt = broadcast(outputs)
    counted = stub.counted()
    floor = (audience - burst) / rate
    refused = counted.refused / (counted.taken + counted.refused)
    console.print(
        f"Quota scaled to {QUOTA_SCALE:.0%} for this machine ({rate:,.0f}/s, burst {burst:,.0f}), "
        f"{audience:,} connections: "
        f"{counted.seconds:.2f} s from the first post to the last, the floor is {floor:.2f} s; "
        f"{refused:.2%} refused; delivered {receipt.delivered:,}, failed {receipt.failed:,}\n"
    )
    met["under the quota within 1.15 of the floor"] = counted.seconds <= 1.15 * floor
    met["fewer than 1% of the posts refused"] = refused < 0.01
    met["under the quota everybody was reached"] = receipt.delivered == audience


def _executions(outputs: Outputs, machine: str) -> list[dict[str, Any]]:
    pages = outputs.client("stepfunctions").get_paginator("list_executions").paginate(stateMachineArn=machine)
    return [execution for page in pages for execution in page["executions"]]


def _states(outputs: Outputs, execution: str) -> Iterator[str]:
    """The inputs and outputs of the states of an execution."""
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
    """What Lambda would bill for each invocation since then, from the REPORT lines of its log."""
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
