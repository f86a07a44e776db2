"""Deliver: post one message to a batch of connections and report the outcome of each."""

import time
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import settings
from functions.shared.clients import at_init, session
from functions.shared.posting.gateway import Gateway, Pace, Posted, Recipient
from functions.shared.telemetry import instrumented, logger, metrics

REPORT_MILLISECONDS = 1_500
"""The time of an invocation that is kept for the result. Posts without an answer by then are reported as
failed. Otherwise Lambda would end the invocation, and the outcomes of the batch would be lost."""


@at_init
def gateway() -> Gateway:
    """Return the gateway of this Lambda environment. Its HTTP connections are reused between invocations."""
    config = settings.load(settings.Deliver)
    return Gateway(config.connections_endpoint, session(), config.post_concurrency)


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Post a `delivery-batch`. Return a `delivery-result`, which counts every connection exactly once."""
    started = time.monotonic()
    seconds = (context.get_remaining_time_in_millis() - REPORT_MILLISECONDS) / 1000
    posted = deliver(event, started + seconds, gateway())
    result = delivery_result(posted)
    milliseconds = round((time.monotonic() - started) * 1000)
    metrics.add_metric("Delivered", MetricUnit.Count, result["delivered"])
    metrics.add_metric("Gone", MetricUnit.Count, result["gone"])
    metrics.add_metric("Failed", MetricUnit.Count, result["failed"])
    metrics.add_metric("Retries", MetricUnit.Count, result["retries"])
    metrics.add_metric("Throttled", MetricUnit.Count, posted.throttled)
    metrics.add_metric("DeliveryLatency", MetricUnit.Milliseconds, milliseconds)
    logger.info(
        "batch posted",
        extra={
            "messageId": event["messageId"],
            "delivered": result["delivered"],
            "gone": result["gone"],
            "failed": result["failed"],
            "retries": result["retries"],
            "milliseconds": milliseconds,
        },
    )
    return result


def deliver(batch: dict[str, Any], deadline: float, gateway: Gateway) -> Posted:
    """Post to every connection of a `delivery-batch`.

    A row that lacks what `$connect` stores is logged and reported as failed, after all others. Its recipient
    has an empty user id if the row has none.
    """
    recipients: list[Recipient] = []
    malformed: list[tuple[Recipient, str]] = []
    for row in batch["connections"]:
        try:
            recipients.append(Recipient.parse(row))
        except ValueError as error:
            user_id = row.get("userId")
            recipient = Recipient(row["connectionId"], user_id if isinstance(user_id, str) else "", 0)
            malformed.append((recipient, str(error)))
    if malformed:
        logger.error(
            "skipped rows of the connections table that cannot be parsed",
            extra={
                "messageId": batch["messageId"],
                "rows": {recipient.connection_id: problem for recipient, problem in malformed},
            },
        )
    pace = Pace(**batch["pace"]) if "pace" in batch else None
    posted = gateway.post(recipients, batch["envelope"].encode(), deadline, pace)
    posted.outcomes += [(recipient, "failed") for recipient, _ in malformed]
    return posted


def delivery_result(posted: Posted) -> dict[str, Any]:
    """Return the `delivery-result` of a batch."""
    return {
        "delivered": posted.count("delivered"),
        "gone": posted.count("gone"),
        "failed": posted.count("failed"),
        "retries": posted.retries,
        "undelivered": [
            {"connectionId": recipient.connection_id, "reason": outcome}
            | ({"userId": recipient.user_id} if recipient.user_id else {})
            for recipient, outcome in posted.outcomes
            if outcome != "delivered"
        ],
    }
