"""Offline: hand the users whom a page of a broadcast did not reach to SNS, and delete rows of the gone."""

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import settings
from functions.shared.clients import at_init, client
from functions.shared.connections import Connections
from functions.shared.handover import HandedOver, Handover
from functions.shared.telemetry import instrumented, logger, metrics

DELETE_SECONDS = 2.5
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


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    """Answer an `offline-result` for an `offline-batch`."""
    result = hand_over(event, dependencies())
    counts = {"offline": result.offline, "offlineFailed": result.failed}
    metrics.add_metric("Offline", "Count", result.offline)
    metrics.add_metric("OfflineFailed", "Count", result.failed)
    logger.info("handed over", extra={"messageId": event["messageId"], **counts})
    return counts


def hand_over(batch: dict[str, Any], using: Dependencies) -> HandedOver:
    """Publish the users of an `offline-batch`, then delete the rows of its connections that are gone.

    In this order, because a fan-out that dies in between is run again, and finds by the rows whom to hand
    over. Deliver reports as gone only what is: past its handshake and 410 twice. A row that cannot be deleted
    costs two posts next time, and nothing else.
    """
    if unnamed := [entry["connectionId"] for entry in batch["undelivered"] if not entry.get("userId")]:
        logger.error("rows without a user id: nobody to hand over", extra={"connectionIds": unnamed})
    result = using.handover.hand_over(batch)
    if gone := [entry["connectionId"] for entry in batch["undelivered"] if entry["reason"] == "gone"]:
        threads = ThreadPoolExecutor(max_workers=8)
        tasks = [threads.submit(using.connections.delete, name) for name in gone]
        done, _ = wait(tasks, timeout=DELETE_SECONDS)
        threads.shutdown(wait=False, cancel_futures=True)
        deleted = sum(1 for task in done if not task.exception())
        if kept := len(gone) - deleted:
            logger.warning("rows of gone connections kept", extra={"rows": kept})
    return result
