"""Offline: hand the users whom a page of a broadcast did not reach to SNS, and forget who is gone."""

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import settings
from functions.shared.clients import at_init, client
from functions.shared.connections import Connections
from functions.shared.handover import HandedOver, Handover
from functions.shared.messages import id_time
from functions.shared.telemetry import logger, metrics, tracer

FORGET_SECONDS = 2.5
"""How long deleting rows may take: a table that stalls must not have the users handed over again."""


@dataclass(frozen=True)
class Dependencies:
    """What `hand_over` works with."""

    handover: Handover
    connections: Connections


@at_init
def dependencies() -> Dependencies:
    """Built by the first event at the latest, and kept while the execution environment lives."""
    config = settings.load(settings.Offline)
    dynamodb = client("dynamodb")
    handover = Handover(
        dynamodb,
        client("sns"),
        connections_table=config.connections_table,
        users_table=config.users_table,
        messages_table=config.messages_table,
        topic_arn=config.offline_topic_arn,
        retention_seconds=config.message_retention_seconds,
    )
    return Dependencies(handover, Connections(dynamodb, config.connections_table))


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
@tracer.capture_lambda_handler(capture_response=False, capture_error=False)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    """Answer an `offline-result` for an `offline-batch`."""
    result = hand_over(event, dependencies())
    counts = {"offline": result.offline, "offlineFailed": result.failed}
    metrics.add_metric("Offline", "Count", result.offline)
    metrics.add_metric("OfflineFailed", "Count", result.failed)
    logger.info("handed over", extra={"messageId": event["messageId"], **counts})
    return counts


def hand_over(batch: dict[str, Any], using: Dependencies) -> HandedOver:
    """Publish the users of an `offline-batch`, then forget those of its connections that are gone.

    In this order, because a fan-out that dies in between is run again, and finds by the rows whom to hand
    over. A connection that may still have been opening when the message was sent keeps its row: its 410 says
    nothing about what it is now, and without a row a live client would never hear again. A row that cannot be
    deleted costs a 410 next time, and nothing else.
    """
    result = using.handover.hand_over(batch)
    if gone := [entry["connectionId"] for entry in batch["undelivered"] if entry["reason"] == "gone"]:
        threads = ThreadPoolExecutor(max_workers=8)
        sent_at = id_time(batch["messageId"])
        tasks = [threads.submit(using.connections.delete_if_open_by, name, sent_at) for name in gone]
        done, _ = wait(tasks, timeout=FORGET_SECONDS)
        threads.shutdown(wait=False, cancel_futures=True)
        forgotten = sum(1 for task in done if not task.exception())
        if kept := len(gone) - forgotten:
            logger.warning("rows of gone connections kept", extra={"rows": kept})
    return result
