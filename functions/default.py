"""`$default`: answers every frame of a client, which is JSON with an `action`.

Every answer is a JSON message with the id of the client's frame as `replyTo`. An `error` message leaves the
connection open, unless the client may not use it any more.
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
"""API Gateway closes a connection that sends a larger frame [API Gateway WebSocket quotas]. Emulators may
accept it."""

CONNECTION_SECONDS = 2 * 60 * 60
IDLE_SECONDS = 10 * 60
"""API Gateway closes a connection after two hours, and after ten idle minutes [API Gateway WebSocket
quotas]."""

ROLL_OVER_MARGIN_SECONDS = 5 * 60
"""How long before the two hours end a client should move to a new connection."""

RESUMED_WRAPPER_BYTES = 400
"""Room for everything in a `resumed` message except its envelopes."""

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """What the actions need."""

    settings: settings.Default
    verifier: Callable[[], "tokens.Verifier"]
    users: Users
    connections: Connections
    queue: messages.Queue
    starter: broadcasts.Starter
    gateway: Any


@cache
def verifier() -> "tokens.Verifier":
    """Built at the first renewal: few events need it, and its imports take a quarter of the cold start."""
    from functions.shared import tokens  # noqa: PLC0415 - for renewals only

    config = settings.load(settings.Default)
    return tokens.Verifier(config, client("secretsmanager") if config.jwt_secret_arn else None)


@at_init
def dependencies() -> Dependencies:
    """Built once per execution environment."""
    config = settings.load(settings.Default)
    dynamodb = client("dynamodb")
    return Dependencies(
        settings=config,
        verifier=verifier,
        users=Users(dynamodb, config.users_table, config.roles),
        connections=Connections(dynamodb, config.connections_table),
        queue=messages.Queue(dynamodb, config.messages_table),
        starter=broadcasts.Starter(client("stepfunctions"), config.broadcast_state_machine_arn),
        gateway=client("apigatewaymanagementapi", config.connections_endpoint),
    )


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer a client's frame. The body reaches the client through the route response."""
    connection_id = event["requestContext"]["connectionId"]
    logger.append_keys(connectionId=connection_id)
    metrics.add_metric("ClientMessages", "Count", 1)
    using = dependencies()
    answer, closes = respond(event.get("body") or "", connection_id, using)
    body = messages.serialise(answer)
    if closes:
        # The connection would stay open without receiving anything. Post the answer first, because nothing
        # can be sent through a closed connection.
        _close(connection_id, body, using.gateway)
        return {"statusCode": 200}
    return {"statusCode": 200, "body": body}


def respond(text: str, connection_id: str, using: Dependencies) -> tuple[Message, bool]:
    """The server message that answers a frame, and whether to close the connection then. Never raises.

    Cheap checks come first: the size, then the sender's role, then the schema.
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
        # `internal` is a failure of the server, also where it has a class, such as `KeysUnavailable`.
        refusal = error if isinstance(error, errors.MusterError) else errors.MusterError()
        if refusal.code != errors.MusterError.code:
            metrics.add_metric("ClientMessagesRefused", "Count", 1)
            logger.warning("message refused", extra={"code": refusal.code, "reason": str(refusal)})
        else:
            metrics.add_metric("ClientMessagesFailed", "Count", 1)
            logger.exception("message failed")
        return errors.reply(refusal, reply_to), refusal.closes


def ping(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """Answer with the connection's role and shelter, and when to renew and to move to a new connection."""
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

    A client that lost the answer may send its frame again with the same id, as long as its role may send it.
    That starts nothing, and the acknowledgement has the id of the first message.
    """
    if frame["action"] == "shelter_update" and using.settings.roles[connection.role].own_shelter_only:
        bind_to_own_shelter(frame, connection.shelter_id)
    now = time.time()
    message_id = messages.uuid7(now, urandom(10))
    request: Message = {
        "type": frame["action"],
        "id": message_id,
        "target": frame.get("target") or {"shelters": [frame["shelterId"]]},
        "payload": frame["payload"],
        "sender": {"userId": connection.user_id, "role": connection.role},
    } | {key: frame[key] for key in ("shelterId", "offline") if key in frame}
    broadcasts.check(request, message_id, now, using.settings.roles)
    execution = _execution_name(connection.user_id, frame["id"]) if "id" in frame else message_id
    started_id = using.starter.start(execution, request)
    logger.info("broadcast started", extra={"messageId": started_id, "userId": connection.user_id})
    return {"type": "ack", "id": started_id, "execution": execution}


def _execution_name(user_id: str, frame_id: str) -> str:
    """The same for a frame that is sent again; frame ids of different users may be equal."""
    return sha256(f"{user_id} {frame_id}".encode()).hexdigest()


def authorise(action: str, role: str, roles: settings.Roles) -> None:
    """Raise `Forbidden` unless the role may send this action."""
    permission = roles.get(role)
    if permission is None:
        problem, allowed = (
            f"{action} is not open to your role, which this deployment does not have",
            "nothing",
        )
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
        problem = "is not only your own shelter"
        fix = f'omit target, or use {{"shelters": [{json.dumps(own, ensure_ascii=False)}]}}'
        raise errors.Forbidden(faults=[Fault("/target", problem, fix)])


def resume(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """Answer with the messages that the client missed, as many as fit into one frame."""
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
            logger.warning("queued message skipped", extra={"reason": "envelope is not JSON"})


def renew(frame: Message, connection: Connection, using: Dependencies) -> Message:
    """Extend the connection to the expiry of a new token of the same user, with the user's role and shelter.

    The connection of a user who may not connect any more ends. A refused token changes nothing.
    """
    claims = using.verifier().verify(frame["token"])
    if claims.user_id != connection.user_id:
        raise errors.TokenRefused("token of another user")
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
    """The fields by which a client sees that its audiences have changed."""
    shelter = {"shelterId": connection.shelter_id} if connection.shelter_id else {}
    return {"role": connection.role, **shelter}


def _request_id(frame: Message) -> str | None:
    identifier = frame.get("id")
    well_formed = isinstance(identifier, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", identifier)
    return identifier if well_formed else None


def _close(connection_id: str, answer: str, gateway: Any) -> None:
    try:
        gateway.post_to_connection(ConnectionId=connection_id, Data=answer.encode())
        gateway.delete_connection(ConnectionId=connection_id)
    except (BotoCoreError, ClientError) as error:
        # The client finds out by itself: its next ping gets an error, or no answer.
        logger.info("connection not closed", extra={"reason": str(error)})
