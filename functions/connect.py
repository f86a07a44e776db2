"""`$connect`: admit a client whose token and user both hold, and store its connection."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import errors, settings, tokens
from functions.shared.clients import at_init, client
from functions.shared.connections import Connections, Users, id_problem
from functions.shared.telemetry import instrumented, logger, metrics


@dataclass(frozen=True)
class Dependencies:
    """What `admit` works with."""

    settings: settings.Connect
    verifier: tokens.Verifier
    users: Users
    connections: Connections


@at_init
def dependencies() -> Dependencies:
    """Built by the first event at the latest, and kept while the execution environment lives."""
    config = settings.load(settings.Connect)
    return Dependencies(
        config,
        tokens.Verifier(config, client("secretsmanager") if config.jwt_secret_arn else None),
        Users(client("dynamodb"), config.users_table, config.roles),
        Connections(client("dynamodb"), config.connections_table),
    )


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer 200 and store a row, or answer 401 or 403 and store none; 500 when the answer is not known.

    The refusal's reason is logged; the token never is.
    """
    connection_id = event["requestContext"]["connectionId"]
    logger.append_keys(connectionId=connection_id)
    if event["requestContext"]["eventType"] != "CONNECT":
        return errors.misrouted()
    outcome = "Failed"
    try:
        headers = admit(event, connection_id, dependencies())
        outcome = "Opened"
        return {"statusCode": 200, "headers": headers}
    except (errors.OriginRefused, errors.TokenRefused, errors.UserRefused) as refusal:
        outcome = "Refused"
        logger.warning("connection refused", extra={"reason": f"{type(refusal).__name__}: {refusal}"})
        return {"statusCode": refusal.status}
    except Exception:
        logger.exception("connection failed")
        return {"statusCode": 500}
    finally:
        # All three each time: metric math has no value at a time for which any of its metrics has none.
        for each in ("Opened", "Refused", "Failed"):
            metrics.add_metric(f"Connections{each}", "Count", int(each == outcome))


def admit(event: dict[str, Any], connection_id: str, using: Dependencies) -> dict[str, str]:
    """Store the connection of an admitted client and return the headers of the handshake's answer.

    The row lives until the token expires or the connection's time to live ends, whichever comes first.
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
    """Raise `OriginRefused` for a web page of a site that is not `allowed`; nothing allowed is everything.

    Browsers name a page's site in `Origin` and let no page change it. A client without that header is no
    browser, and could claim any: the token alone decides about it.
    """
    origin = next((value for name, value in headers.items() if name.lower() == "origin"), None)
    if allowed and origin is not None and origin not in allowed:
        raise errors.OriginRefused(origin)
