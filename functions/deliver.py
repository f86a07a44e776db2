"""Deliver: post one message to one batch of connections and say what became of each."""

import time
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import settings
from functions.shared.clients import at_init, session
from functions.shared.posting.gateway import Gateway, Pace, Posted, Recipient
from functions.shared.telemetry import instrumented, logger, metrics

REPORT_MILLISECONDS = 1_500
"""What an invocation keeps of its time for answering. Posts still unanswered by then are reported as failed
rather than lost with the invocation."""


@at_init
def gateway() -> Gateway:
    """Built by the first event at the latest; it and its HTTP connections last as long as the environment."""
    config = settings.load(settings.Deliver)
    return Gateway(config.connections_endpoint, session(), config.post_concurrency)


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer a `delivery-result` for a `delivery-batch`: every connection delivered, gone or failed, once."""
    started = time.monotonic()
    seconds = (context.get_remaining_time_in_millis() - REPORT_MILLISECONDS) / 1000
    posted = deliver(event, started + seconds, gateway())
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


def deliver(batch: dict[str, Any], deadline: float, gateway: Gateway) -> Posted:
    """Post to every connection of a `delivery-batch`.

    A row that does not hold what `$connect` stores ends as failed, after all others, and is logged. Its
    recipient has no user id if the row has none.
    """
    recipients: list[Recipient] = []
    unreadable: list[tuple[Recipient, str]] = []
    for row in batch["connections"]:
        try:
            recipients.append(Recipient.parse(row))
        except ValueError as error:
            user_id = row.get("userId")
            unreadable.append(
                (Recipient(row["connectionId"], user_id if isinstance(user_id, str) else "", 0), str(error))
            )
    if unreadable:
        logger.error(
            "rows of the connections table cannot be read",
            extra={
                "messageId": batch["messageId"],
                "rows": {who.connection_id: problem for who, problem in unreadable},
            },
        )
    pace = Pace(**batch["pace"]) if "pace" in batch else None
    posted = gateway.post(recipients, batch["envelope"].encode(), deadline, pace)
    posted.outcomes += [(who, "failed") for who, _ in unreadable]
    return posted


def summarise(posted: Posted) -> dict[str, Any]:
    """The `delivery-result` of a posted batch."""
    return {
        "delivered": posted.count("delivered"),
        "gone": posted.count("gone"),
        "failed": posted.count("failed"),
        "retries": posted.retries,
        "undelivered": [
            {"connectionId": who.connection_id, "reason": outcome}
            | ({"userId": who.user_id} if who.user_id else {})
            for who, outcome in posted.outcomes
            if outcome != "delivered"
        ],
    }
