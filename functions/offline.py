"""Offline: hand the users whom a page of a broadcast did not reach to SNS."""

from functools import cache
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import settings
from functions.shared.clients import client
from functions.shared.handover import Handover
from functions.shared.telemetry import logger, metrics, tracer


@cache
def handover() -> Handover:
    """Built on the first event and kept while the execution environment lives."""
    config = settings.load(settings.Offline)
    return Handover(
        client("dynamodb"),
        client("sns"),
        connections_table=config.connections_table,
        users_table=config.users_table,
        messages_table=config.messages_table,
        topic_arn=config.offline_topic_arn,
        retention_seconds=config.message_retention_seconds,
    )


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
@tracer.capture_lambda_handler(capture_response=False, capture_error=False)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    """Answer an `offline-result` for an `offline-batch`."""
    result = handover().hand_over(event)
    counts = {"offline": result.offline, "offlineFailed": result.failed}
    metrics.add_metric("Offline", "Count", result.offline)
    metrics.add_metric("OfflineFailed", "Count", result.failed)
    logger.info("handed over", extra={"messageId": event["messageId"], **counts})
    return counts
