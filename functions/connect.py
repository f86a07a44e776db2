"""`$connect`: verify a client's token and user, and store its connection."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import errors, settings, tokens
from functions.shared.clients import at_init, client
from functions.shared.connections import Connections, Users, id_problem
from functions.shared.routes import misrouted
from functions.shared.telemetry import instrumented, logger, metrics


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """What `admit` needs."""

    settings: settings.Connect
    verifier: tokens.Verifier
    users: Users
    connections: Connections


@at_init
def dependencies() -> Dependencies:
    """Built once per execution environment."""
    config = settings.load(settings.Connect)
    dynamodb = client("dynamodb")
    return Dependencies(
        settings=config,
        verifier=tokens.Verifier(config, client("secretsmanager") if config.jwt_secret_arn else None),
        users=Users(dynamodb, config.users_table, config.roles),
        connections=Connections(dynamodb, config.connections_table),
    )


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Store a row and answer 200, or answer 401 or 403; 500 when the client cannot be verified now.

    The log has the reason of a refusal, and never the token.
    """
    connection_id = event["requestContext"]["connectionId"]
    logger.append_keys(connectionId=connection_id)
    if response := misrouted(event, "CONNECT"):
        return response
    outcome = "ConnectionsFailed"
    try:
        headers = admit(event, connection_id, dependencies())
        outcome = "ConnectionsOpened"
        return {"statusCode": 200, "headers": headers}
    except (errors.OriginRefused, errors.TokenRefused, errors.UserRefused) as refusal:
        outcome = "ConnectionsRefused"
        logger.warning("connection refused", extra={"reason": f"{type(refusal).__name__}: {refusal}"})
        return {"statusCode": refusal.status}
    except Exception:
        logger.exception("connection failed")
        return {"statusCode": 500}
    finally:
        # Metric math has no result for a period in which one of its metrics has no data, so write all three.
        for name in ("ConnectionsOpened", "ConnectionsRefused", "ConnectionsFailed"):
            metrics.add_metric(name, "Count", int(name == outcome))


def admit(event: dict[str, Any], connection_id: str, using: Dependencies) -> dict[str, str]:
    """Store the connection of a verified client and return the headers of the handshake's response.

    The row expires with the token or after the connection's time to live, whichever comes first.
    Raises `OriginRefused`, `TokenRefused`, `UserRefused` or `KeysUnavailable`.
    """
    check_origin(event.get("headers") or {}, using.settings.allowed_origins)
    offer = tokens.find(event)
    claims = using.verifier.verify(offer.token)
    if not id_problem(claims.user_id):
        logger.append_keys(userId=claims.user_id)
    user = using.users.active(claims.user_id)
    now = time.time()
    expires_at = min(claims.expires_at, int(now) + using.settings.connection_ttl_seconds)
    using.connections.put(connection_id, user, now, expires_at, using.settings.audience_shards)
    return {"Sec-WebSocket-Protocol": offer.subprotocol} if offer.subprotocol else {}


def check_origin(headers: Mapping[str, str], allowed: Sequence[str]) -> None:
    """Raise `OriginRefused` for a web page whose site is not allowed. Without `allowed`, every site is.

    Browsers send the page's site in `Origin`, and a page cannot change it. A client without that header is
    not a browser and could send any value, so only its token is checked.
    """
    origin = next((value for name, value in headers.items() if name.lower() == "origin"), None)
    if allowed and origin is not None and origin not in allowed:
        raise errors.OriginRefused(origin)
