"""What the handlers of the WebSocket routes share."""

import json
from collections.abc import Mapping
from typing import Any

from functions.shared.errors import Fault, UnknownAction, reply


def misrouted(event: Mapping[str, Any], event_type: str) -> dict[str, Any] | None:
    """The response to a message that reached the handler of a connection event; None for that event itself.

    API Gateway selects the route by a message's action, so a client reaches `$connect` and `$disconnect` with
    messages whose action has that name. Their `eventType` is MESSAGE.
    """
    if event["requestContext"]["eventType"] == event_type:
        return None
    refusal = UnknownAction(faults=[Fault("/action", "is reserved", "use one of the documented actions")])
    return {"statusCode": 400, "body": json.dumps(reply(refusal, None))}
