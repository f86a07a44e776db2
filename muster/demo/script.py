"""The demo: real clients, real broadcasts, and proof that each client got exactly what was meant for it.

`run` works against any local stack. Who must get what is worked out from the users alone, independently of
how the stack finds its audiences.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice, product, zip_longest
from typing import Any, Literal

from muster.broadcaster import Broadcaster, Execution, MessageType
from muster.listeners import (
    ARRIVAL_SECONDS,
    HANDSHAKE_LIMIT_MS,
    Listeners,
    Timing,
    broadcast_limit_ms,
    wait_for_receipt,
)
from muster.local.seed import SHELTERS, USERS, User
from muster.outputs import Outputs
from muster.progress import Progress, Silent
from muster.tokens import TokenIssuer

FEWEST_CLIENTS = 6
"""One of each role, and one of them twice."""

TABLE_OPERATION_LIMIT_MS = 100.0


@dataclass(frozen=True)
class Step:
    """One broadcast of the demo; `sender` is the user whose client sends it, None for an execution."""

    type: MessageType
    scope: str
    target: Mapping[str, Any]
    sender: str | None = None
    shelter_id: str | None = None

    @property
    def via(self) -> Literal["execution", "client"]:
        """How it is started."""
        return "client" if self.sender else "execution"


@dataclass(frozen=True)
class Delivery:
    """What became of a step: `audience` clients should have got it, `delivered` did.

    `timing` is from its start to its arrival at the clients; None when it arrived nowhere.
    """

    via: str
    type: str
    scope: str
    audience: int
    delivered: int
    timing: Timing | None
    receipt: dict[str, Any]


@dataclass(frozen=True)
class Missed:
    """The story of a client that was away: what SNS put into the queue, and how a resume made up for it."""

    user_id: str
    message_id: str
    notification: dict[str, Any] | None
    resumed: bool
    resumed_after_ms: float


@dataclass(frozen=True)
class Limit:
    """A figure that the demo promises to stay under, in milliseconds."""

    name: str
    measured_ms: float
    limit_ms: float

    @property
    def met(self) -> bool:
        """Whether the promise was kept."""
        return self.measured_ms < self.limit_ms


@dataclass(frozen=True)
class Report:
    """All that the demo measured. `problems` names whatever was missing or too slow; empty is success."""

    clients: int
    users: int
    handshake: Timing
    deliveries: Sequence[Delivery]
    missed: Missed
    table_operations: Mapping[str, Timing]
    limits: Sequence[Limit]
    problems: Sequence[str]


def cast(clients: int) -> list[User]:
    """Return a user for each client: a fifth are second connections, the rest different users.

    The seeded active users come first, one of each role in turn; then as many residents and responders as
    needed, over both shelters and none. The last user has one connection.
    """
    by_role: dict[str, list[User]] = {}
    for user in USERS:
        if user.active:
            by_role.setdefault(user.role, []).append(user)
    seeded = [user for rank in zip_longest(*reversed(by_role.values())) for user in rank if user]
    shelters = (shelter.shelter_id for shelter in SHELTERS)
    places = cycle(product(("resident", "first_responder"), (*shelters, None)))
    extra = (User(f"demo-{number:03}", *place) for number, place in enumerate(places, start=1))
    doubled = clients // 5
    users = list(islice(chain(seeded, extra), clients - doubled))
    return users[:doubled] + users


def script(users: Sequence[User]) -> list[Step]:
    """Return a broadcast to each scope by execution, and one of each type by a client that may send it.

    Before them comes one that starts the Lambdas: its time is shown, and held to no limit.
    """
    first = {user.role: user for user in reversed(users)}
    resident, responder = first["resident"].user_id, first["first_responder"].user_id
    operator, shelter = first["shelter_operator"].user_id, first["shelter_operator"].shelter_id
    overlap = {"roles": ["first_responder"], "shelters": [shelter], "users": [responder, resident]}
    return [
        Step("broadcast", "all, cold", {"all": True}),
        Step("broadcast", "all", {"all": True}),
        Step("alert", "role", {"roles": ["first_responder"]}),
        Step("broadcast", "user", {"users": [resident]}),
        Step("shelter_update", "shelter", {"shelters": [shelter]}, shelter_id=shelter),
        Step("alert", "overlapping", overlap),
        Step("broadcast", "all", {"all": True}, sender=first["coordinator"].user_id),
        Step("alert", "role", {"roles": ["resident"]}, sender=responder),
        Step("shelter_update", "shelter", {"shelters": [shelter]}, sender=operator, shelter_id=shelter),
    ]


def is_addressed(user: User, target: Mapping[str, Any]) -> bool:
    """Tell whether a target includes a user."""
    return (
        "all" in target
        or user.role in target.get("roles", ())
        or user.shelter_id in target.get("shelters", ())
        or user.user_id in target.get("users", ())
    )


async def run(outputs: Outputs, clients: int, progress: Progress | None = None) -> Report:
    """Play the demo with at least FEWEST_CLIENTS clients against a freshly seeded local stack.

    What can be measured and is wrong goes into the report; raises MusterError when it cannot go on.
    """
    shown = progress or Silent()
    users = cast(clients)
    await asyncio.to_thread(_write_users, outputs, users)
    listeners = Listeners(outputs.websocket_url, TokenIssuer.from_outputs(outputs).issue, users, shown)
    room = _Room(outputs, listeners)
    async with listeners:
        handshake = Timing.of(listener.handshake_seconds for listener in listeners.all)
        deliveries = []
        for step in script(users):
            shown.step(f"Broadcasting {step.type} to {step.scope} by {step.via}")
            deliveries.append(await room.perform(step))
        shown.step("Timing table operations")
        tables = await asyncio.to_thread(time_table_operations, outputs)
        shown.step("Closing a client and sending to its user")
        missed = await room.miss_and_resume()
        shown.step("Checking that nobody got anything else")
        await listeners.settle()
    slowest = max((delivery.timing.max_ms for delivery in deliveries[1:] if delivery.timing), default=0.0)
    limits = (
        Limit("handshake", handshake.max_ms, HANDSHAKE_LIMIT_MS),
        Limit("start to last receipt", slowest, broadcast_limit_ms(clients)),
        Limit("table operation", max(timing.max_ms for timing in tables.values()), TABLE_OPERATION_LIMIT_MS),
    )
    too_slow = [
        f"{limit.name} took {limit.measured_ms:.0f} ms, over the limit of {limit.limit_ms:.0f} ms"
        for limit in limits
        if not limit.met
    ]
    return Report(
        clients=clients,
        users=len({user.user_id for user in users}),
        handshake=handshake,
        deliveries=deliveries,
        missed=missed,
        table_operations=tables,
        limits=limits,
        problems=[*room.problems, *listeners.differences(), *too_slow],
    )


def time_table_operations(outputs: Outputs, rounds: int = 5) -> dict[str, Timing]:
    """Put, get and delete a row of each table, and return the time of each operation over all tables."""
    dynamodb = outputs.resource("dynamodb")
    keys: dict[str, dict[str, str]] = {
        outputs.connections_table: {"connectionId": "demo-probe"},
        outputs.users_table: {"userId": "demo-probe"},
        outputs.messages_table: {"audience": "demo-probe", "messageId": "demo-probe"},
        outputs.shelters_table: {"shelterId": "demo-probe"},
    }
    seconds: dict[str, list[float]] = {"put": [], "get": [], "delete": []}
    for name, key in keys.items():
        table = dynamodb.Table(name)
        # Opens the connection, so that the first sample does not.
        table.get_item(Key=key)
        calls = {
            "put": partial(table.put_item, Item=key),
            "get": partial(table.get_item, Key=key),
            "delete": partial(table.delete_item, Key=key),
        }
        for _ in range(rounds):
            for operation, call in calls.items():
                started = time.perf_counter()
                call()
                seconds[operation].append(time.perf_counter() - started)
    return {operation: Timing.of(samples) for operation, samples in seconds.items()}


class _Room:
    """What the demo does with its clients; `problems` names what a receipt or the queue got wrong."""

    def __init__(self, outputs: Outputs, listeners: Listeners) -> None:
        self._outputs = outputs
        self._seats = listeners
        self._broadcaster = Broadcaster.from_outputs(outputs)
        self.problems: list[str] = []

    async def perform(self, step: Step) -> Delivery:
        """Send a broadcast and wait for its receipt and for its arrival at every client it is meant for."""
        addressed = [listener for listener in self._seats.all if is_addressed(listener.user, step.target)]
        payload = {"text": f"{step.type} to {step.scope}"}
        started = time.perf_counter()
        if step.sender is None:
            execution = await self._start(step.type, step.target, payload, step.shelter_id)
        else:
            message = {"action": step.type, "target": step.target, "payload": payload}
            about = {"shelterId": step.shelter_id} if step.shelter_id else {}
            ack = await self._seats.of(step.sender).send(message | about)
            execution = self._broadcaster.execution(ack["execution"])
        receipt = await wait_for_receipt(self._broadcaster, execution)
        name = f"{step.type} to {step.scope} by {step.via}"
        self._seats.expect(receipt.id, name, addressed)
        counts = (receipt.audience, receipt.delivered, receipt.gone, receipt.failed, receipt.offline)
        if counts != (len(addressed), len(addressed), 0, 0, 0):
            self.problems.append(
                f"{name}: the receipt counts {receipt.to_dict()}, not {len(addressed)} delivered"
            )
        await self._seats.arrivals(receipt.id, addressed)
        latencies = [
            listener.received[receipt.id] - started
            for listener in addressed
            if receipt.id in listener.received
        ]
        return Delivery(
            via=step.via,
            type=step.type,
            scope=step.scope,
            audience=len(addressed),
            delivered=len(latencies),
            timing=Timing.of(latencies) if latencies else None,
            receipt=receipt.to_dict(),
        )

    async def miss_and_resume(self) -> Missed:
        """Close a client, send to its user, look for the message in the queue, and reconnect to resume."""
        listener = self._seats.all[-1]
        user_id = listener.user.user_id
        await listener.close()
        await self._forgotten(user_id)
        name = "alert to a user who is offline"
        execution = await self._start("alert", {"users": [user_id]}, {"text": name}, None)
        receipt = await wait_for_receipt(self._broadcaster, execution)
        self._seats.expect(receipt.id, name, [listener])
        if (receipt.delivered, receipt.offline) != (0, 1):
            self.problems.append(
                f"{name}: the receipt counts {receipt.to_dict()}, not one user handed to SNS"
            )
        notification = await self._notification(receipt.id)
        if notification is None:
            self.problems.append(f"{name}: no SNS message about it reached the queue")
        started = time.perf_counter()
        await self._seats.open(listener)
        await self._seats.arrivals(receipt.id, [listener])
        return Missed(
            user_id=user_id,
            message_id=receipt.id,
            notification=notification,
            resumed=receipt.id in listener.received,
            resumed_after_ms=round(1000 * (time.perf_counter() - started), 1),
        )

    async def _start(
        self, kind: MessageType, target: Mapping[str, Any], payload: Mapping[str, Any], shelter_id: str | None
    ) -> Execution:
        sender = {"service": "muster-demo"}
        return await asyncio.to_thread(
            self._broadcaster.start, kind, target, payload, shelter_id=shelter_id, sender=sender
        )

    async def _forgotten(self, user_id: str) -> None:
        """Wait until no connection of a user is known: one that is just closing may still take a post."""
        table = self._outputs.resource("dynamodb").Table(self._outputs.connections_table)
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while time.monotonic() < deadline:
            known = await asyncio.to_thread(
                table.query,
                IndexName="UserIndex",
                KeyConditionExpression="userId = :user",
                ExpressionAttributeValues={":user": user_id},
            )
            if not known["Items"]:
                return
            await asyncio.sleep(0.05)

    async def _notification(self, identifier: str) -> dict[str, Any] | None:
        """Take the SNS message about a broadcast from the queue."""
        queue = self._outputs.client("sqs")
        url = self._outputs.offline_queue_url
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while time.monotonic() < deadline:
            answer = await asyncio.to_thread(
                queue.receive_message, QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1
            )
            for entry in answer.get("Messages", ()):
                queue.delete_message(QueueUrl=url, ReceiptHandle=entry["ReceiptHandle"])
                notification: dict[str, Any] = json.loads(json.loads(entry["Body"])["Message"])
                if notification["message"]["id"] == identifier:
                    return notification
        return None


def _write_users(outputs: Outputs, users: Iterable[User]) -> None:
    with outputs.resource("dynamodb").Table(outputs.users_table).batch_writer() as batch:
        for user in set(users) - set(USERS):
            batch.put_item(Item=user.item())
