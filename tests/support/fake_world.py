"""A deployment in memory for the checks of `muster verify`, which may be broken in one way."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import jwt
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from muster.broadcaster import Execution, IdempotencyConflict, MessageType, Offline, Receipt
from muster.listeners import Listeners
from muster.local.seed import User
from muster.outputs import Outputs
from muster.progress import Silent
from muster.tokens import TokenIssuer
from muster.verify import Consent, Probe, SecretTokens
from muster.verify.offline_topic import ReadReasons
from muster.verify.targets import choose_users

SECRET = "s" * 64
ISSUER = TokenIssuer(SECRET, "muster", "muster-clients")
ARN = "arn:aws:states:eu-west-1:123456789012:stateMachine:town-broadcast"

OUTPUTS = Outputs(
    region="eu-west-1",
    websocket_url="wss://example.org/live",
    connections_endpoint="https://example.org/live",
    broadcast_state_machine_arn=ARN,
    fanout_state_machine_arn=ARN.replace("broadcast", "fanout"),
    offline_topic_arn="arn:aws:sns:eu-west-1:123456789012:town-offline",
    offline_queue_url="https://sqs.eu-west-1.amazonaws.com/123456789012/town-offline",
    offline_queue_arn="arn:aws:sqs:eu-west-1:123456789012:town-offline",
    connections_table="town-connections",
    users_table="town-users",
    messages_table="town-messages",
    shelters_table="town-shelters",
    jwt_issuer=ISSUER.issuer,
    jwt_audience=ISSUER.audience,
    jwt_secret_arn="arn:aws:secretsmanager:eu-west-1:123456789012:secret:town",
    log_groups={"connect": "/aws/lambda/town-connect"},
    function_names={"connect": "town-connect", "default": "town-default", "deliver": "town-deliver"},
)


class World(Probe):
    """A probe that answers checks without a network. `faults` names what is broken."""

    def __init__(self, *faults: str, consent: Consent | None = None) -> None:
        tokens = SecretTokens(ISSUER)
        users = asyncio.run(choose_users(tokens, 4, Silent()))
        super().__init__(OUTPUTS, tokens, users, Silent(), consent or Consent())
        self.faults = set(faults)
        self.listeners: FakeListeners = FakeListeners(self)
        self.sockets: list[FakeSocket] = []
        self.permissions = {"admin": {"actions": ["alert"]}}
        self.roles = {user.user_id: user.role for user in self.users.stored}
        self.recorded: dict[str, list[dict[str, Any]]] = {}
        self.used: dict[str, tuple[str, dict[str, Any]]] = {}
        self.receipts: dict[str, Receipt] = {}
        self.answers: dict[str, Any] = {}
        self.stale: dict[str, list[dict[str, Any]]] = {}
        self.unread = 0
        """The first notifications that do not reach the run's SQS queue."""

    def broken(self, fault: str) -> bool:
        return fault in self.faults

    # ---- AWS

    async def call(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        answer = self.answers.get(f"{service}.{operation}", {})
        if isinstance(answer, Exception):
            raise answer
        if operation == "put_item" and arguments["TableName"] == "town-connections":
            row = arguments["Item"]
            self.stale[row["userId"]["S"]] = [row]
        found = answer(**arguments) if callable(answer) else answer
        return dict(found)

    async def pages(self, service: str, operation: str, result: str, **arguments: Any) -> list[Any]:
        return list((await self.call(service, operation, **arguments)).get(result, ()))

    async def note(self, *resources: str) -> None:
        pass

    async def set_role(self, user: User, role: str) -> None:
        self.roles[user.user_id] = role

    # ---- connections

    @contextlib.asynccontextmanager
    async def socket(  # type: ignore[override]  # a fake socket
        self, token: str | None = None, *, query: str | None = None, subprotocols: Sequence[str] = ()
    ) -> AsyncIterator["FakeSocket"]:
        presented = token or query or (subprotocols[1] if subprotocols else None)
        if (query and self.broken("no token in the query")) or (token and self.broken("no header")):
            presented = None
        status = self._admission(presented)
        if status != 200:
            raise InvalidStatus(Response(status, "", Headers()))
        user_id = jwt.decode(presented or "", options={"verify_signature": False})["sub"]
        selected = "muster" if subprotocols and not self.broken("no subprotocol") else None
        socket = FakeSocket(self, user_id, selected)
        socket.handshake_seconds = 9.0 if self.broken("slow handshakes") else 0.01
        self.sockets.append(socket)
        try:
            yield socket
        finally:
            if socket in self.sockets and not (socket.cut and self.broken("cuts are not noticed")):
                self.sockets.remove(socket)

    def _admission(self, token: str | None) -> int:
        """Return the status of the handshake."""
        try:
            claims = jwt.decode(
                token or "",
                "x" * 64 if self.broken("wrong key") else SECRET,
                algorithms=["HS256"],
                audience=ISSUER.audience,
                issuer=ISSUER.issuer,
                options={"verify_exp": not self.broken("expired tokens pass")},
            )
        except jwt.InvalidTokenError:
            return 403 if self.broken("always 403") else 401
        known = {user.user_id for user in self.users.stored if user.active}
        if claims["sub"] in known or self.broken("anybody is admitted"):
            return 200
        return 403

    async def connections_of(self, user_id: str) -> list[dict[str, Any]]:
        if self.broken("slow index"):
            return []
        live = [socket for socket in self.sockets if socket.user_id == user_id]
        live += [
            FakeSocket(self, listener.user.user_id, None)
            for listener in self.listeners.all
            if self.listeners.opened and listener.user.user_id == user_id
        ]
        rows = [
            {"connectionId": {"S": socket.connection_id}, "userId": {"S": user_id}}
            for socket in live
            if not (socket.cut and not self.broken("cuts are not noticed"))
        ]
        return rows + self.stale.get(user_id, [])

    async def indexed(self, user_id: str, count: int, seconds: float) -> list[dict[str, Any]]:
        return await self.connections_of(user_id)

    async def forget_connection(self, connection_id: str) -> None:
        pass

    async def pad_connection(self, connection_id: str, size: int) -> None:
        pass

    async def paged(self, user_id: str, seconds: float) -> None:
        pass

    # ---- broadcasts

    async def start(
        self,
        target: Mapping[str, Any],
        payload: Mapping[str, Any],
        *,
        type: MessageType = "broadcast",
        offline: Offline = "never",
        name: str | None = None,
    ) -> Execution:
        self.check_target(target)
        name = name or uuid4().hex
        if name in self.used and not self.broken("names start twice"):
            arn, before = self.used[name]
            if before != payload and not self.broken("names are not bound"):
                raise IdempotencyConflict("No.")
            return Execution(arn)
        arn = f"{ARN}:{uuid4().hex}"
        self.used[name] = arn, dict(payload)
        self.deliver(arn, target, payload, offline)
        return Execution(arn)

    def deliver(
        self, arn: str, target: Mapping[str, Any], payload: Mapping[str, Any], offline: str = "never"
    ) -> str:
        """Deliver a message to the connected listeners and sockets, and store its receipt."""
        identifier = str(uuid4())
        message = {"type": "broadcast", "id": identifier, "sentAt": "t" * 24, "payload": payload}
        users = set(target.get("users", ()))
        if "shelters" in target:
            users |= {user.user_id for user in self.users.listeners if user.shelter_id}
        roles = set(target.get("roles", ()))
        everybody = "all" in target
        for user_id in users:
            self.recorded.setdefault(user_id, []).append(message)
        sockets = [s for s in self.sockets if s.user_id in users or self.roles.get(s.user_id) in roles]
        listeners = [
            s
            for s in self.listeners.all
            if self.listeners.opened
            and (everybody or s.user.user_id in users or self.roles[s.user.user_id] in roles)
        ]
        if self.broken("shelters are empty") and "shelters" in target:
            listeners = []
        if self.broken("everybody gets everything"):
            listeners = self.listeners.all
        lost = self.broken("one client gets nothing") or (
            self.broken("ids with = get nothing") and len(listeners) == len(self.listeners.all)
        )
        for listener in listeners[1:] if lost else listeners:
            listener.received[identifier] = time.perf_counter() + (9 if self.broken("slow broadcasts") else 0)
            listener.senders[identifier] = self.sender
        for socket in sockets:
            socket.early.append(json.dumps(message))
        gone = sum(len(self.stale.pop(user_id, ())) for user_id in users)
        absent = (
            sum(not sockets and not listeners and not gone for _ in users)
            if len(users) == 1
            else len(users) - 1
        )
        published = gone + absent if offline == "fallback" else 0
        count = len(sockets) + len(listeners) + gone
        failed = count - gone if self.broken("posts fail") else 0
        self.receipts[arn] = Receipt(
            id=identifier,
            type="broadcast",
            audience=count,
            delivered=count - gone - failed - (1 if self.broken("receipts are short") else 0),
            gone=gone,
            failed=failed,
            offline=published,
            offline_failed=0,
            pages=1,
            retries=0,
            partitions=1,
            unreached=(),
            notified=False,
            started_at=datetime.now(UTC),
            duration_ms=1,
        )
        return identifier

    def follow(self, execution: Execution) -> None:
        pass

    async def receipt(self, execution: Execution) -> Receipt:
        return self.receipts[execution.arn]

    async def run_nested(self, fanout_input: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        message = {"id": fanout_input["message"]["messageId"]}
        for socket in self.sockets:
            socket.early.append(json.dumps(message))
        delivered = len(self.sockets) - self.broken("nested runs lose posts")
        seconds = 5.0 if self.broken("nested runs are short") else 45.0
        return seconds, {"counts": {"audience": len(self.sockets), "delivered": delivered, "pages": 3}}

    async def others_who_match(self, users: Sequence[User]) -> list[str]:
        return ["sqs town-offline"] if self.broken("somebody listens") else []

    @contextlib.asynccontextmanager
    async def subscribed_queue(self, users: Sequence[User]) -> AsyncIterator[ReadReasons]:
        async def read(message_id: str, count: int, seconds: float) -> dict[str, str]:
            if self.broken("SNS is silent"):
                return {}
            if self.unread:
                self.unread -= 1
                return {}
            if count == 1:
                return {self.users.absent.user_id: "absent"}
            reasons = ("absent", "gone") if self.broken("wrong reasons") else ("gone", "absent")
            return dict(zip([user.user_id for user in users], reasons, strict=True))

        yield read


class FakeListeners(Listeners):
    """Listeners that connect without a handshake."""

    def __init__(self, world: World) -> None:
        super().__init__(OUTPUTS.websocket_url, world.tokens.issue, world.users.listeners, Silent())
        self.opened = False

    async def __aenter__(self) -> "FakeListeners":
        self.opened = True
        return self


class FakeSocket:
    """A socket whose server is the fake deployment."""

    def __init__(self, world: World, user_id: str, subprotocol: str | None) -> None:
        self.world = world
        self.user_id = user_id
        self.subprotocol = subprotocol
        self.connection = self
        self.connection_id = uuid4().hex + ("" if world.broken("plain ids") else "=")
        self.handshake_seconds = 0.0
        self.early: list[str] = []
        self.cut = False
        self.sent = ""

    async def send(self, text: str) -> None:
        self.sent = text

    async def ask(self, frame: Mapping[str, Any] | str) -> dict[str, Any]:
        if self.world.broken("no replies"):
            raise TimeoutError
        if isinstance(frame, str):
            return {"type": "error", "code": "internal" if self.world.broken("no errors") else "invalid_json"}
        if frame["action"] == "ping":
            if self.world.broken("route names break") and "$connect" in self.sent:
                return {"type": "error", "code": "unknown_connection"}
            return self._pong() if "padding" not in frame else {"type": "error", "code": "invalid_message"}
        if frame["action"] == "resume":
            return self._resumed()
        return self._sent(frame)

    def _pong(self) -> dict[str, Any]:
        now = datetime.now(UTC)
        seconds = 5400 if self.world.broken("wrong roll-over") else 6900
        idle = 60 if self.world.broken("wrong idle time") else 600
        return {
            "type": "pong",
            "connectedAt": now.isoformat(),
            "serverTime": now.isoformat(),
            "expiresAt": (now + timedelta(hours=1)).isoformat(),
            "reconnectBy": (now + timedelta(seconds=seconds)).isoformat(),
            "idleTimeoutSeconds": idle,
        }

    def _resumed(self) -> dict[str, Any]:
        messages = [] if self.world.broken("nothing is kept") else self.world.recorded[self.user_id]
        ordered = sorted(messages, key=lambda m: str(m["id"]), reverse=self.world.broken("wrong order"))
        return {"type": "resumed", "messages": ordered, "more": False, "cursor": None}

    def _sent(self, frame: Mapping[str, Any]) -> dict[str, Any]:
        world = self.world
        if world.roles[self.user_id] != "admin" and not world.broken("anybody may send"):
            return {"type": "error", "code": "forbidden"}
        if not isinstance(frame["payload"], dict) and not world.broken("anything is accepted"):
            faults = [{"pointer": "/payload", "problem": "is no object", "fix": "send one"}]
            return {"type": "error", "code": "invalid_message", "faults": faults}
        overhead = len(
            json.dumps({"type": "broadcast", "id": "i" * 36, "sentAt": "t" * 24, "payload": {"text": ""}})
        )
        size = overhead + len(frame["payload"]["text"]) if isinstance(frame["payload"], dict) else 0
        limit = 20_000 if world.broken("small messages only") else 30 * 1024
        if size > limit and not world.broken("no limit of messages"):
            return {"type": "error", "code": "too_large"}
        name = frame["id"]
        if name in world.used and not world.broken("client ids start twice"):
            identifier, before = world.used[name]
            if before != frame["payload"] and not world.broken("client ids are not bound"):
                return {"type": "error", "code": "conflict"}
            return {"type": "ack", "id": identifier, "execution": name}
        arn = world.broadcaster.execution(name).arn
        payload = frame["payload"] if isinstance(frame["payload"], dict) else {}
        if world.broken("messages are cut") and len(payload.get("text", "")) > 100:
            payload = {"text": payload["text"][:100]}
        identifier = world.deliver(arn, frame["target"], payload)
        world.used[name] = identifier, frame["payload"]
        return {"type": "ack", "id": identifier, "execution": name}

    async def message(self, identifier: str) -> str:
        for raw in self.early:
            if json.loads(raw)["id"] == identifier:
                return raw
        raise TimeoutError

    async def close_code(self, seconds: float) -> int | None:
        if len(self.sent) > 32 * 1024:
            if self.world.broken("large frames pass"):
                raise TimeoutError
            return 1008 if self.world.broken("wrong close code") else 1009
        if self.world.broken("idle sockets stay"):
            raise TimeoutError
        return 1001

    def reset(self) -> None:
        self.cut = True
