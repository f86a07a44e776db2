"""`$default`: every frame that a client sends, as JSON with an `action`.

Every answer is a JSON message that carries the client's own id as `replyTo`; a refusal is an `error` message
and leaves the connection usable.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from os import urandom
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import BotoCoreError, ClientError

from functions.shared import broadcasts, errors, messages, settings
from functions.shared.clients import at_init, client
from functions.shared.connections import Connection, Connections, Users
from functions.shared.errors import Fault
from functions.shared.instants import epoch, iso
from functions.shared.telemetry import instrumented, logger, metrics
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
        Users(dynamodb, config.users_table, config.roles),
        Connections(dynamodb, config.connections_table),
        messages.Queue(dynamodb, config.messages_table),
        broadcasts.Starter(client("stepfunctions"), config.broadcast_state_machine_arn),
        client("apigatewaymanagementapi", config.connections_endpoint),
    )


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one client message; the body reaches the client through the route response."""
    connection_id = event["requestContext"]["connectionId"]
    logger.append_keys(connectionId=connection_id)
    metrics.add_metric("ClientMessages", "Count", 1)
    using = dependencies()
    answer, closes = respond(event.get("body") or "", connection_id, using)
    body = messages.serialise(answer)
    if closes:
        # It would stay open and hear nothing. The answer must be posted first, because nothing can be sent
        # through a connection that is closed.
        _close(connection_id, body, using.gateway)
        return {"statusCode": 200}
    return {"statusCode": 200, "body": body}


def respond(text: str, connection_id: str, using: Dependencies) -> tuple[Message, bool]:
    """The server message that answers a frame, and whether the connection is then closed. Never raises.

    The cheap checks come first: the size, then whether the sender's role may send at all, then the schema.
    """
    reply_to: str | None = None
    try:
        size = len(text.encode(errors="surrogatepass"))
        if size > MAX_FRAME_BYTES:
            problem = f"is {size} bytes, more than {MAX_FRAME_BYTES}"
            raise errors.TooLarge(faults=[Fault("", problem, "send less, or a link to the rest")])
        frame = parse_object(text)
        reply_to = _request_id(frame)
        name = frame.get("action")
        if not isinstance(name, str) or name not in ACTIONS:
            raise errors.UnknownAction(
                faults=[Fault("/action", "is missing or unknown", "use one of " + ", ".join(ACTIONS))]
            )
        logger.append_keys(action=name)
        connection = using.connections.touch(connection_id, time.time())
        if ACTIONS[name] is send:
            authorise(name, connection.role, using.settings.roles)
        validate(f"client-{name.replace('_', '-')}", frame)
        return ACTIONS[name](frame, connection, using) | {"replyTo": reply_to}, False
    except Exception as error:
        # `internal` is the server's own failure, even where it has a class, such as keys that cannot be read.
        refusal = error if isinstance(error, errors.MusterError) else errors.MusterError()
        if refusal.code != errors.MusterError.code:
            metrics.add_metric("ClientMessagesRefused", "Count", 1)
            logger.warning("message refused", extra={"code": refusal.code, "reason": str(refusal)})
        else:
            metrics.add_metric("ClientMessagesFailed", "Count", 1)
            logger.exception("message failed")
        return errors.reply(refusal, reply_to), refusal.closes


def ping(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """Tell the client that the server knows it, as whom, and when it should renew and roll over."""
    return {
        "type": "pong",
        "serverTime": iso(time.time()),
        **_audiences(connection),
        "connectedAt": connection.connected_at,
        "expiresAt": iso(connection.expires_at),
        "reconnectBy": iso(epoch(connection.connected_at) + CONNECTION_SECONDS - ROLL_OVER_MARGIN_SECONDS),
        "idleTimeoutSeconds": IDLE_SECONDS,
    }


def send(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """Start a broadcast and acknowledge it with the message's id.

    A frame that is sent again with the same client id starts nothing and is acknowledged with the first
    message's id, so a client that lost the answer may simply repeat itself, as long as its role may send it.
    """
    if frame["action"] == "shelter_update" and using.settings.roles[connection.role].own_shelter_only:
        bind_to_own_shelter(frame, connection.shelter_id)
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


def authorise(action: str, role: str, roles: settings.Roles) -> None:
    """Raise `Forbidden` unless the role may send messages of this action."""
    permission = roles.get(role)
    if permission is None:
        problem, allowed = f"{action} is not open to a role that this deployment does not have", "nothing"
    elif action not in permission.actions:
        problem = f"{action} is not open to the role {role}"
        allowed = ", ".join(sorted(permission.actions)) or "nothing"
    else:
        return
    raise errors.Forbidden(faults=[Fault("/action", problem, f"it may send {allowed}")])


def bind_to_own_shelter(update: Message, own: str | None) -> None:
    """Raise `Forbidden` unless a shelter update is about the shelter `own` and for its audience."""
    if own is None or update["shelterId"] != own:
        fix = f"use {own}" if own else "ask for a shelter to be assigned to you"
        raise errors.Forbidden(faults=[Fault("/shelterId", "is not your own shelter", fix)])
    if update.get("target", {"shelters": [own]}) != {"shelters": [own]}:
        problem = "is more or other than your own shelter"
        fix = f'leave target out, or use {{"shelters": [{json.dumps(own, ensure_ascii=False)}]}}'
        raise errors.Forbidden(faults=[Fault("/target", problem, fix)])


def resume(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """What the connection's audiences were told while it was away, as much as one frame carries."""
    room = messages.MAX_RESUMED_BYTES - RESUMED_WRAPPER_BYTES
    page = using.queue.missed(connection, frame.get("after"), frame.get("cursor"), room)
    return {
        "type": "resumed",
        "messages": list(_parsed(page.envelopes)),
        "more": page.cursor is not None,
        "cursor": page.cursor,
    }


def _parsed(envelopes: Iterable[str]) -> Iterator[Message]:
    for envelope in envelopes:
        try:
            yield json.loads(envelope)
        except (ValueError, RecursionError):
            logger.warning("queued message left out", extra={"reason": "envelope is not JSON"})


def renew(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """Let the connection live as long as a fresh token of the same user, in the user's present audiences.

    A user who may not connect any more loses the connection; a token that does not hold changes nothing.
    """
    claims = using.verifier().verify(frame["token"])
    if claims.user_id != connection.user_id:
        raise errors.TokenRefused("another user's")
    now = time.time()
    try:
        user = using.users.active(claims.user_id)
    except errors.UserRefused:
        using.connections.expire(connection.connection_id, now)
        raise
    renewed = using.connections.renew(
        connection.connection_id,
        user,
        now,
        expires_at=min(claims.expires_at, int(now) + using.settings.connection_ttl_seconds),
        shards=using.settings.audience_shards,
    )
    return {"type": "renewed", "expiresAt": iso(renewed.expires_at), **_audiences(renewed)}


ACTIONS: dict[str, Callable[[Message, Connection, Dependencies], Message]] = {
    "ping": ping,
    "broadcast": send,
    "alert": send,
    "shelter_update": send,
    "resume": resume,
    "renew": renew,
}


def _audiences(connection: Connection) -> Message:
    """What a client compares to see whether its audiences have changed."""
    shelter = {"shelterId": connection.shelter_id} if connection.shelter_id else {}
    return {"role": connection.role, **shelter}


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
