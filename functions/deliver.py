"""Deliver: post one message to one batch of connections and say what became of each."""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import settings
from functions.shared.clients import client, session
from functions.shared.connections import Connections
from functions.shared.gateway import Gateway, Pace, Posted, Recipient
from functions.shared.telemetry import logger, metrics, tracer

REPORT_MILLISECONDS = 4_000
"""What an invocation keeps of its time for deleting rows and answering. Posts still unanswered by then are
reported as failed rather than lost with the invocation."""

FORGET_SECONDS = 2.5
"""How much of that may go into deleting rows: a table that stalls must not cost the report."""


@dataclass(frozen=True)
class Dependencies:
    """What `deliver` works with; the gateway's HTTP connections outlive an invocation."""

    gateway: Gateway
    connections: Connections


@cache
def dependencies() -> Dependencies:
    """Built on the first event and kept while the execution environment lives."""
    config = settings.load(settings.Deliver)
    return Dependencies(
        Gateway(config.connections_endpoint, session(), config.post_concurrency),
        Connections(client("dynamodb"), config.connections_table),
    )


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
@tracer.capture_lambda_handler(capture_response=False, capture_error=False)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer a `delivery-result` for a `delivery-batch`: every connection delivered, gone or failed, once."""
    started = time.monotonic()
    seconds = (context.get_remaining_time_in_millis() - REPORT_MILLISECONDS) / 1000
    posted = deliver(event, started + seconds, dependencies())
    result = summarise(posted)
    counts = {key: result[key] for key in ("delivered", "gone", "failed", "retries")}
    for name, value in {**counts, "throttled": posted.throttled}.items():
        metrics.add_metric(name.capitalize(), MetricUnit.Count, value)
    milliseconds = round((time.monotonic() - started) * 1000)
    metrics.add_metric("DeliveryLatency", MetricUnit.Milliseconds, milliseconds)
    logger.info(
        "batch posted", extra={"messageId": event["messageId"], **counts, "milliseconds": milliseconds}
    )
    return result


def deliver(batch: dict[str, Any], deadline: float, using: Dependencies) -> Posted:
    """Post to every connection of a `delivery-batch` and forget those that are closed.

    A connection whose 410 came during its handshake keeps its row, however long the batch lasts after that:
    deleting it would leave a live client that never hears again. A row that cannot be deleted costs a 410
    next time, and nothing else.
    """
    recipients = [Recipient.parse(row) for row in batch["connections"]]
    pace = Pace(**batch["pace"]) if "pace" in batch else None
    posted = using.gateway.post(recipients, batch["envelope"].encode(), deadline, pace)
    if posted.closed:
        threads = ThreadPoolExecutor(max_workers=8)
        tasks = [threads.submit(using.connections.delete, who.connection_id) for who in posted.closed]
        done, _ = wait(tasks, timeout=FORGET_SECONDS)
        threads.shutdown(wait=False, cancel_futures=True)
        forgotten = sum(1 for task in done if not task.exception())
        if kept := len(posted.closed) - forgotten:
            logger.warning("rows of gone connections kept", extra={"rows": kept})
    return posted


def summarise(posted: Posted) -> dict[str, Any]:
    """The `delivery-result` of a posted batch."""
    return {
        "delivered": posted.count("delivered"),
        "gone": posted.count("gone"),
        "failed": posted.count("failed"),
        "retries": posted.retries,
        "undelivered": [
            {"connectionId": who.connection_id, "userId": who.user_id, "reason": outcome}
            for who, outcome in posted.outcomes
            if outcome != "delivered"
        ],
    }
