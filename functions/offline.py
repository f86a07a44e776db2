"""Offline: notify the users whom a page of a broadcast did not reach, and delete rows of gone connections."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import settings
from functions.shared.clients import at_init, client
from functions.shared.connections import Connections
from functions.shared.notifications import Counts, Notifier
from functions.shared.telemetry import instrumented, logger, metrics

DELETE_SECONDS = 2.5
"""How long deleting rows may take. If the function timed out, its retry would notify the users again."""


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """What `notify` needs."""

    notifier: Notifier
    connections: Connections


@at_init
def dependencies() -> Dependencies:
    """Built once per execution environment."""
    config = settings.load(settings.Offline)
    dynamodb = client("dynamodb")
    notifier = Notifier(
        dynamodb,
        client("sns"),
        connections_table=config.connections_table,
        users_table=config.users_table,
        messages_table=config.messages_table,
        topic_arn=config.offline_topic_arn,
        retention_seconds=config.message_retention_seconds,
    )
    return Dependencies(notifier=notifier, connections=Connections(dynamodb, config.connections_table))


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    """Answer an `offline-result` for an `offline-batch`."""
    result = notify(event, dependencies())
    counts = {"offline": result.notified, "offlineFailed": result.failed}
    metrics.add_metric("Offline", "Count", result.notified)
    metrics.add_metric("OfflineFailed", "Count", result.failed)
    logger.info("notified", extra={"messageId": event["messageId"], **counts})
    return counts


def notify(batch: dict[str, Any], using: Dependencies) -> Counts:
    """Notify the users of an `offline-batch`, then delete the rows of its gone connections.

    In this order, because a fan-out that dies in between is run again, and finds the users to notify by
    these rows. Deliver reports a connection as gone only after its handshake time and two 410s. A row that
    cannot be deleted only costs two posts with the next broadcast.
    """
    if unnamed := [entry["connectionId"] for entry in batch["undelivered"] if not entry.get("userId")]:
        logger.error("rows without a user id: nobody to notify", extra={"connectionIds": unnamed})
    result = using.notifier.notify(batch)
    if gone := [entry["connectionId"] for entry in batch["undelivered"] if entry["reason"] == "gone"]:
        _delete(gone, using.connections)
    return result


def _delete(connection_ids: Sequence[str], connections: Connections) -> None:
    threads = ThreadPoolExecutor(max_workers=8)
    tasks = [threads.submit(connections.delete, connection_id) for connection_id in connection_ids]
    done, _ = wait(tasks, timeout=DELETE_SECONDS)
    threads.shutdown(wait=False, cancel_futures=True)
    deleted = sum(1 for task in done if not task.exception())
    if kept := len(connection_ids) - deleted:
        logger.warning("rows of gone connections kept", extra={"rows": kept})
