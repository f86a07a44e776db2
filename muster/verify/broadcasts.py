"""Checks that broadcast to connected users of the run."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from muster.broadcaster import IdempotencyConflict, Receipt
from muster.client import SETTLE_SECONDS
from muster.listeners import Listener, Timing
from muster.local.seed import User
from muster.verify import limits
from muster.verify.check import Check
from muster.verify.probe import Probe
from muster.verify.rows import Broken, CannotTell
from muster.verify.sockets import Socket
from muster.verify.sources import DEFAULT_LOG, DELIVER_LOG, DELIVERY, PROTOCOL
from muster.verify.targets import MOST_NAMED

TEXT = "Test of the alert system. Nothing has happened and nothing is asked of you."

ROUNDS = 5
"""Samples of each time that is measured."""


async def clients(probe: Probe) -> str:
    """Connect all clients, and leave them open for later checks."""
    await probe.open.enter_async_context(probe.listeners)
    timing = Timing.of(listener.handshake_seconds for listener in probe.listeners.all)
    count = len(probe.listeners.all)
    return f"{count} connected; handshakes: p50 {timing.p50_ms:.0f}, max {timing.max_ms:.0f} ms."


async def index(probe: Probe) -> str:
    """Wait until the index that broadcasts read contains every client, and one that connects now."""
    for user in probe.users.listeners:
        await wait_until_indexed(probe, user, SETTLE_SECONDS)
    slowest = 0.0
    for _ in range(ROUNDS):
        async with probe.socket(probe.tokens.issue(probe.users.nested.user_id)):
            began = time.monotonic()
            await wait_until_indexed(probe, probe.users.nested, SETTLE_SECONDS)
            slowest = max(slowest, time.monotonic() - began)
        await probe.indexed(probe.users.nested.user_id, 0, SETTLE_SECONDS)
    return f"A new connection was in the index within {1000 * slowest:.0f} ms."


async def wait_until_indexed(probe: Probe, user: User, seconds: float) -> list[dict[str, Any]]:
    """Return a user's rows once the index that broadcasts read has one; raise Broken after `seconds`."""
    if not (rows := await probe.indexed(user.user_id, 1, seconds)):
        raise Broken(
            f"A connection was not in the index after {seconds:g} s.",
            "Look for throttles of the table. Clients resume after that time, and would miss a broadcast.",
        )
    return rows


async def connection_ids(probe: Probe) -> str:
    """Post to connections whose ids contain `=`."""
    listeners = probe.listeners.all
    ids = {
        listener.name: row["connectionId"]["S"]
        for listener in listeners
        for row in await probe.connections_of(listener.user.user_id)
    }
    special = [listener for listener in listeners if "=" in ids.get(listener.name, "")][:MOST_NAMED]
    if not special:
        raise CannotTell("No connection id of this run contains a `=`.")
    await broadcast(
        probe, "message to ids with =", {"users": [listener.user.user_id for listener in special]}, special
    )
    return f"{len(special)} of {len(ids)} ids contain a `=`, and a message arrived at each of them."


async def to_users(probe: Probe) -> str:
    """Broadcast to half of the users by name."""
    chosen = probe.listeners.all[: min((len(probe.listeners.all) + 1) // 2, MOST_NAMED)]
    await broadcast(
        probe, "message to users", {"users": [listener.user.user_id for listener in chosen]}, chosen
    )
    return f"The receipt counts {len(chosen)} delivered, and it arrived at those {len(chosen)}."


async def to_shelter(probe: Probe) -> str:
    """Broadcast to the run's shelter."""
    chosen = [listener for listener in probe.listeners.all if listener.user.shelter_id]
    await broadcast(probe, "message to the shelter", {"shelters": [probe.users.shelter]}, chosen)
    return f"The receipt counts {len(chosen)} delivered, and it arrived at those {len(chosen)}."


async def broadcast(
    probe: Probe, what: str, target: Mapping[str, Any], listeners: Sequence[Listener], *, real: bool = False
) -> tuple[Receipt, float]:
    """Broadcast; check the receipt and the arrivals; return the receipt and the seconds to the last arrival.

    `real` says that the target contains real people, whom the receipt counts too.
    """
    began = time.perf_counter()
    execution = await probe.start(target, {"text": TEXT})
    receipt = await probe.receipt(execution)
    probe.listeners.expect(receipt.id, what, listeners)
    await probe.listeners.arrivals(receipt.id, listeners)
    missing = [listener for listener in listeners if receipt.id not in listener.received]
    if missing:
        raise Broken(f"The {what} did not arrive at {len(missing)} of {len(listeners)} clients.", DELIVER_LOG)
    counts = (receipt.audience, receipt.delivered, receipt.gone, receipt.failed, receipt.offline)
    if not real and counts != (len(listeners), len(listeners), 0, 0, 0):
        raise Broken(
            f"The receipt counts {receipt.delivered} of {receipt.audience} delivered, {receipt.gone} gone, "
            f"{receipt.failed} failed and {receipt.offline} published. {len(listeners)} delivered were "
            "expected.",
            DELIVER_LOG,
        )
    return receipt, max((listener.received[receipt.id] for listener in listeners), default=began) - began


async def repeated_name(probe: Probe) -> str:
    """Start a broadcast twice under one name, then another one under the same name."""
    listener = probe.listeners.all[0]
    target, name = {"users": [listener.user.user_id]}, uuid4().hex
    first = await probe.start(target, {"text": TEXT}, name=name)
    receipt = await probe.receipt(first)
    probe.listeners.expect(receipt.id, "message that is sent twice", [listener])
    await probe.listeners.arrivals(receipt.id, [listener])
    again = await probe.start(target, {"text": TEXT}, name=name)
    if again.arn != first.arn or (await probe.receipt(again)).id != receipt.id:
        raise Broken(
            "The same name started a second broadcast.", "Check that broadcast is a STANDARD state machine."
        )
    try:
        await probe.start(target, {"text": f"{TEXT} Again."}, name=name)
    except IdempotencyConflict:
        return "The same name returned the same message. Another message under it was refused."
    raise Broken(
        "A used name started another broadcast.", "Check that broadcast is a STANDARD state machine."
    )


@contextlib.asynccontextmanager
async def _sender(probe: Probe) -> AsyncIterator[tuple[Socket, str]]:
    """Open a socket of a user whose role may send alerts.

    The user has that role only while the socket is open: a real broadcast to the role would count this
    connection too.
    """
    sender = probe.users.sender
    may_send = sorted(role for role, may in probe.permissions.items() if "alert" in may["actions"])
    if not may_send:
        raise CannotTell("No role of this deployment may send an alert.")
    await probe.set_role(sender, may_send[0])
    try:
        async with probe.socket(probe.tokens.issue(sender.user_id)) as socket:
            yield socket, may_send[0]
    finally:
        await probe.set_role(sender, probe.role)


def _alert(probe: Probe, user: User, text: str) -> dict[str, Any]:
    target = {"users": [user.user_id]}
    probe.check_target(target)
    payload = {"text": text}
    return {"action": "alert", "id": uuid4().hex, "target": target, "payload": payload, "offline": "never"}


async def client_sends(probe: Probe) -> str:
    """Send an alert from a client, repeat it, reuse its id for another, and send an invalid one."""
    listener = probe.listeners.all[0]
    frame = _alert(probe, listener.user, TEXT)
    if "alert" not in probe.permissions.get(probe.role, {"actions": ()})["actions"]:
        async with probe.socket(probe.tokens.issue(probe.users.sender.user_id)) as socket:
            forbidden = await socket.ask(frame)
        if forbidden.get("code") != "forbidden":
            got = forbidden.get("code") or forbidden.get("type")
            raise Broken(f"A role without alert got {got}, not forbidden.", "Check the variable roles.")
    async with _sender(probe) as (socket, role):
        first = await socket.ask(frame)
        if first.get("type") != "ack":
            raise Broken(f"An alert was answered with {first.get('code')}.", DEFAULT_LOG)
        execution = probe.broadcaster.execution(first["execution"])
        probe.follow(execution)
        probe.listeners.expect(first["id"], "alert of a client", [listener])
        again = await socket.ask(frame)
        conflict = await socket.ask(frame | {"payload": {"text": f"{TEXT} Again."}})
        invalid = await socket.ask({**_alert(probe, listener.user, TEXT), "payload": []})
        await probe.receipt(execution)
        await probe.listeners.arrivals(first["id"], [listener])
    if first["id"] not in listener.received:
        raise Broken("The alert did not arrive.", DELIVER_LOG)
    if again.get("id") != first["id"]:
        raise Broken("A repeated id was acknowledged with another message.", DEFAULT_LOG)
    if conflict.get("code") != "conflict":
        got = conflict.get("code")
        raise Broken(f"Another message under a used id got {got}, not conflict.", DEFAULT_LOG)
    faults = [fault["pointer"] for fault in invalid.get("faults", ())]
    if (invalid.get("code"), faults) != ("invalid_message", ["/payload"]):
        raise Broken(f"A list as payload got {invalid.get('code')} about {faults}.", DEFAULT_LOG)
    return f"An alert by the role {role} arrived. Repeating its id started nothing. The rest was refused."


async def largest_message(probe: Probe) -> str:
    """Send the largest message, and one that is a byte larger.

    A client sends them: a refused request of a service is a failed execution, which raises an alarm.
    """
    receiver = probe.users.nested
    token = probe.tokens.issue(receiver.user_id)
    async with probe.socket(token) as socket, _sender(probe) as (sender, _role):
        await wait_until_indexed(probe, receiver, SETTLE_SECONDS)

        async def send(text: str) -> dict[str, Any]:
            reply = await sender.ask(_alert(probe, receiver, text))
            if reply.get("type") == "ack":
                execution = probe.broadcaster.execution(reply["execution"])
                probe.follow(execution)
                await probe.receipt(execution)
            return reply

        overhead = len((await socket.message((await send(""))["id"])).encode())
        text = "x" * (limits.ENVELOPE_BYTES - overhead)
        reply = await send(text)
        if reply.get("type") != "ack":
            raise Broken(f"A message of {limits.ENVELOPE_BYTES} bytes got {reply.get('code')}.", DEFAULT_LOG)
        frame = await socket.message(reply["id"])
        if len(frame.encode()) != limits.ENVELOPE_BYTES or json.loads(frame)["payload"]["text"] != text:
            raise Broken(f"The message changed on its way: {len(frame.encode())} bytes arrived.", DELIVER_LOG)
        over = await send(f"{text}x")
    await probe.indexed(receiver.user_id, 0, SETTLE_SECONDS)
    if over.get("code") != "too_large":
        got = over.get("code") or over.get("type")
        raise Broken(f"A message of {limits.ENVELOPE_BYTES + 1} bytes got {got}, not too_large.", DEFAULT_LOG)
    return f"A message of {limits.ENVELOPE_BYTES} bytes arrived whole; one byte more was refused."


CHECKS = (
    Check("clients", "Many clients connect at once.", PROTOCOL, clients),
    Check(
        "index",
        "A connection is in the indexes a few seconds after it opened.",
        DELIVERY,
        index,
        needs=("header", "clients"),
    ),
    Check("users", "A broadcast to users reaches each of them.", DELIVERY, to_users, needs=("clients",)),
    Check(
        "shelter",
        "A broadcast to a shelter reaches everybody in it.",
        DELIVERY,
        to_shelter,
        needs=("clients",),
    ),
    Check(
        "connection-ids",
        "Posts reach connections whose ids contain `=`.",
        "AWS: PostToConnection",
        connection_ids,
        needs=("clients",),
    ),
    Check(
        "repeated-name",
        "A name starts one broadcast.",
        "AWS: StartExecution is idempotent for STANDARD",
        repeated_name,
        needs=("clients",),
    ),
    Check(
        "client-sends",
        "A client sends as its role allows, and an id starts one message.",
        PROTOCOL,
        client_sends,
        needs=("clients",),
    ),
    Check(
        "largest",
        "A message of 30 KiB arrives; a larger one is refused.",
        PROTOCOL,
        largest_message,
        ("header",),
    ),
)
