"""`$default`: every frame that a client sends, as JSON with an `action`.

Every answer is a JSON message that carries the client's own id as `replyTo`; a refusal is an `error` message
and leaves the connection usable.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from os import urandom
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import BotoCoreError, ClientError

from functions.shared import broadcasts, errors, messages, settings
from functions.shared.clients import at_init, client
from functions.shared.connections import Connection, Connections, Users, epoch, iso
from functions.shared.errors import Fault
from functions.shared.telemetry import logger, metrics, tracer
from functions.shared.validation import parse_object, validate

if TYPE_CHECKING:
    from functions.shared import tokens

MAX_FRAME_BYTES = 32 * 1024
"""API Gateway closes a connection that sends a larger frame; other endpoints may let it through.
[API Gateway WebSocket quotas]"""

CONNECTION_SECONDS = 2 * 60 * 60
IDLE_SECONDS = 10 * 60
"""API Gateway closes a connection at two hours, and after ten idle minutes. [API Gateway WebSocket quotas]"""

ROLL_OVER_MARGIN_SECONDS = 5 * 60
"""How long before the two hours a client should have moved to a new connection."""

RESUMED_WRAPPER_BYTES = 400
"""Room for everything in a `resumed` message but its envelopes."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Dependencies:
    """What the actions work with."""

    settings: settings.Default
    verifier: Callable[[], "tokens.Verifier"]
    users: Users
    connections: Connections
    queue: messages.Queue
    starter: broadcasts.Starter
    gateway: Any


@cache
def verifier() -> "tokens.Verifier":
    """Built for the first renewal: its imports are a quarter of this function's, and few events need them."""
    from functions.shared import tokens  # noqa: PLC0415 - for renewals only

    config = settings.load(settings.Default)
    return tokens.Verifier(config, client("secretsmanager") if config.jwt_secret_arn else None)


@at_init
def dependencies() -> Dependencies:
    """Built by the first event at the latest, and kept while the execution environment lives."""
    config = settings.load(settings.Default)
    dynamodb = client("dynamodb")
    return Dependencies(
        config,
        verifier,
        Users(dynamodb, config.users_table),
        Connections(dynamodb, config.connections_table),
        messages.Queue(dynamodb, config.messages_table),
        broadcasts.Starter(client("stepfunctions"), config.broadcast_state_machine_arn),
        client("apigatewaymanagementapi", config.connections_endpoint),
    )


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
@tracer.capture_lambda_handler(capture_response=False, capture_error=False)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one client message; the body reaches the client through the route response."""
    connection_id = event["requestContext"]["connectionId"]
    logger.append_keys(connectionId=connection_id)
    metrics.add_metric("ClientMessages", "Count", 1)
    using = dependencies()
    answer = respond(event.get("body") or "", connection_id, using)
    body = messages.serialise(answer)
    if answer.get("code") == errors.UnknownConnection.code:
        # Its token has expired or its row is lost: it would stay open and hear nothing. The answer must be
        # posted first, because nothing can be sent through a connection that is closed.
        _close(connection_id, body, using.gateway)
        return {"statusCode": 200}
    return {"statusCode": 200, "body": body}


def respond(text: str, connection_id: str, using: Dependencies) -> Message:
    """The server message that answers a frame. Never raises."""
    reply_to: str | None = None
    try:
        if len(text.encode()) > MAX_FRAME_BYTES:
            problem = f"is {len(text.encode())} bytes, more than {MAX_FRAME_BYTES}"
            raise errors.TooLarge(faults=[Fault("", problem, "send less, or a link to the rest")])
        frame = parse_object(text)
        reply_to = _request_id(frame)
        name = frame.get("action")
        if not isinstance(name, str) or name not in ACTIONS:
            raise errors.UnknownAction(
                faults=[Fault("/action", "is missing or unknown", "use one of " + ", ".join(ACTIONS))]
            )
        logger.append_keys(action=name)
        validate(f"client-{name.replace('_', '-')}", frame)
        connection = using.connections.touch(connection_id, time.time())
        return ACTIONS[name](frame, connection, using) | {"replyTo": reply_to}
    except errors.MusterError as refusal:
        metrics.add_metric("ClientMessagesRefused", "Count", 1)
        logger.warning("message refused", extra={"code": refusal.code, "reason": str(refusal)})
        return errors.reply(refusal, reply_to)
    except Exception as error:
        metrics.add_metric("ClientMessagesFailed", "Count", 1)
        logger.exception("message failed")
        return errors.reply(error, reply_to)


def ping(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """Tell the client that the server knows it, and when it should renew and roll over."""
    return {
        "type": "pong",
        "serverTime": iso(time.time()),
        "connectedAt": connection.connected_at,
        "expiresAt": iso(connection.expires_at),
        "reconnectBy": iso(epoch(connection.connected_at) + CONNECTION_SECONDS - ROLL_OVER_MARGIN_SECONDS),
        "idleTimeoutSeconds": IDLE_SECONDS,
    }


def send(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """Start a broadcast, if the sender's role allows it, and acknowledge it with the message's id.

    A frame that is sent again with the same client id starts nothing and is acknowledged with the first
    message's id, so a client that lost the answer may simply repeat itself.
    """
    authorise(frame, connection, using.settings.roles)
    now = time.time()
    name = messages.uuid7(now, urandom(10))
    request: Message = {
        "type": frame["action"],
        "id": name,
        "target": frame.get("target") or {"shelters": [frame["shelterId"]]},
        "payload": frame["payload"],
        "sender": {"userId": connection.user_id, "role": connection.role},
    } | {key: frame[key] for key in ("shelterId", "offline") if key in frame}
    broadcasts.check(request, name, now, using.settings.roles)
    if "id" in frame:
        name = sha256(f"{connection.user_id} {frame['id']}".encode()).hexdigest()
    identifier = using.starter.start(name, request)
    logger.info("broadcast started", extra={"messageId": identifier, "userId": connection.user_id})
    return {"type": "ack", "id": identifier, "execution": name}


def authorise(frame: Message, connection: Connection, roles: settings.Roles) -> None:
    """Raise `Forbidden` unless the connection's role may send this frame."""
    action, role = frame["action"], connection.role
    permission = roles.get(role)
    if permission is None or action not in permission.actions:
        allowed = ", ".join(sorted(permission.actions)) if permission and permission.actions else "nothing"
        raise errors.Forbidden(
            faults=[Fault("/action", f"{action} is not open to the role {role}", f"it may send {allowed}")]
        )
    own_only = permission.own_shelter_only and action == "shelter_update"
    if own_only and frame["shelterId"] != connection.shelter_id:
        fix = (
            f"use {connection.shelter_id}"
            if connection.shelter_id
            else "ask for a shelter to be assigned to you"
        )
        raise errors.Forbidden(faults=[Fault("/shelterId", "is not your own shelter", fix)])


def resume(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """What the connection's audiences were told while it was away, as much as one frame carries."""
    room = messages.MAX_RESUMED_BYTES - RESUMED_WRAPPER_BYTES
    page = using.queue.missed(connection, frame.get("after"), frame.get("cursor"), room)
    return {
        "type": "resumed",
        "messages": [json.loads(envelope) for envelope in page.envelopes],
        "more": page.cursor is not None,
        "cursor": page.cursor,
    }


def renew(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """Let the connection live as long as a fresh token of the same user."""
    claims = using.verifier().verify(frame["token"])
    if claims.user_id != connection.user_id:
        raise errors.TokenRefused("another user's")
    using.users.active(claims.user_id)
    now = time.time()
    expires_at = min(claims.expires_at, int(now) + using.settings.connection_ttl_seconds)
    using.connections.extend(connection.connection_id, now, expires_at)
    return {"type": "renewed", "expiresAt": iso(expires_at)}


ACTIONS: dict[str, Callable[[Message, Connection, Dependencies], Message]] = {
    "ping": ping,
    "broadcast": send,
    "alert": send,
    "shelter_update": send,
    "resume": resume,
    "renew": renew,
}


def _request_id(frame: Message) -> str | None:
    identifier = frame.get("id")
    well_formed = isinstance(identifier, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", identifier)
    return identifier if well_formed else None


def _close(connection_id: str, last_words: str, gateway: Any) -> None:
    try:
        gateway.post_to_connection(ConnectionId=connection_id, Data=last_words.encode())
        gateway.delete_connection(ConnectionId=connection_id)
    except (BotoCoreError, ClientError) as error:
        # Whatever is the matter, the client finds out by itself: its next ping goes unanswered.
        logger.info("connection not closed", extra={"reason": str(error)})
