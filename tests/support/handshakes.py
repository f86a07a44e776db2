"""Handshakes without a WebSocket: invokes `connect` with the event that API Gateway sends."""

from typing import Any

from tests.support.deployment import Deployment, Invocation, unique


def handshake(
    deployment: Deployment,
    *,
    query: str | None = None,
    header: str | None = None,
    subprotocols: str | None = None,
    function: str = "connect",
) -> tuple[str, Invocation]:
    """Invoke `connect` as API Gateway would; return the connection's id and the answer."""
    connection_id = unique("connection")
    event: dict[str, Any] = {
        "requestContext": {"connectionId": connection_id, "eventType": "CONNECT", "routeKey": "$connect"},
        "headers": {"Host": "example.org"},
    }
    if query is not None:
        event["queryStringParameters"] = {"Authorization": query}
    if header is not None:
        event["headers"]["Authorization"] = header
    if subprotocols is not None:
        event["headers"]["Sec-WebSocket-Protocol"] = subprotocols
    return connection_id, deployment.invoke(function, event)


def assert_refused(
    deployment: Deployment, connection_id: str, answer: Invocation, status: int, reason: str, token: str
) -> None:
    """The client got this status, no row was stored, and the log gives the reason without the token."""
    assert answer.payload == {"statusCode": status}
    assert deployment.connection(connection_id) is None
    (record,) = answer.records("connection refused")
    assert record["reason"] == reason
    assert record["connectionId"] == connection_id
    # Neither the whole token nor any of its parts.
    assert not [part for part in token.split(".") if part and part in answer.log]
