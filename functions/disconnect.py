"""`$disconnect`: forget a connection that has closed.

API Gateway calls it on a best-effort basis, so nothing depends on it: a row that stays behind is deleted
by the first post that finds its connection gone, or by its ttl.
"""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import errors, settings
from functions.shared.clients import at_init, client
from functions.shared.connections import Connections
from functions.shared.telemetry import instrumented, logger, metrics


@at_init
def connections() -> Connections:
    """Built by the first event at the latest, and kept while the execution environment lives."""
    return Connections(client("dynamodb"), settings.load(settings.Disconnect).connections_table)


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Delete the connection's row. Answers 200; the client is gone and reads no answer."""
    request = event["requestContext"]
    if request["eventType"] != "DISCONNECT":
        return errors.misrouted()
    connections().delete(request["connectionId"])
    metrics.add_metric("ConnectionsClosed", "Count", 1)
    logger.info("disconnected", extra={"connectionId": request["connectionId"]})
    return {"statusCode": 200}
