"""`$disconnect`: delete the row of a closed connection.

API Gateway calls it on a best-effort basis, so nothing depends on it. A row that is left over is deleted
after the first post that finds its connection gone, or by its ttl.
"""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import settings
from functions.shared.clients import at_init, client
from functions.shared.connections import Connections
from functions.shared.routes import misrouted
from functions.shared.telemetry import instrumented, logger, metrics


@at_init
def connections() -> Connections:
    """Built once per execution environment."""
    return Connections(client("dynamodb"), settings.load(settings.Disconnect).connections_table)


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Delete the connection's row and answer 200, which nobody reads."""
    if response := misrouted(event, "DISCONNECT"):
        return response
    connection_id = event["requestContext"]["connectionId"]
    connections().delete(connection_id)
    metrics.add_metric("ConnectionsClosed", "Count", 1)
    logger.info("disconnected", extra={"connectionId": connection_id})
    return {"statusCode": 200}
