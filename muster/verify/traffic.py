"""Checks that connect and broadcast, to the run's own users only."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from websockets.exceptions import InvalidStatus

from muster.broadcaster import IdempotencyConflict, Receipt
from muster.client import SETTLE_SECONDS
from muster.local.seed import User
from muster.seats import HANDSHAKE_LIMIT_MS, Seat, Timing, broadcast_limit_ms
from muster.verify.account import function
from muster.verify.probe import MOST_NAMED, SENDER, Probe, Socket
from muster.verify.rows import Broken, CannotTell, Check

FRAME_BYTES = 32 * 1024
"""The largest frame. [API Gateway WebSocket quotas]"""

ENVELOPE_BYTES = 30 * 1024
"""The largest message as it is delivered. [docs/protocol.md]"""

IDLE_SECONDS = 600
ROLL_OVER_SECONDS = 115 * 60
"""What a pong says: API Gateway's idle timeout, and five minutes before its two hours."""

ROUNDS = 5
"""Samples of each latency."""

CLOSE_SECONDS = 10.0

LONG_CONNECTIONS = 6
SECONDS_PER_POST = 7.5
PADDING_BYTES = 390_000
"""Six posts at this pace take 45 s. Two or three rows of this size make a page [DynamoDB Query, 1 MB], whose
batch then takes at most 23 s of deliver's 30."""

DELIVER_SECONDS = 30
LONG_SECONDS = 40.0

TEXT = "Test of the alert system. Nothing has happened and nothing is asked of you."

CONNECT_LOG = "Read the log of the connect function."
DEFAULT_LOG = "Read the log of the default function."
DELIVER_LOG = "Read the logs of the deliver function and of the execution."


# ---- Handshakes


async def token_in_query(probe: Probe) -> str:
    """Open a socket with the token in the address."""
    token = probe.tokens.issue(probe.cast.seats[0].user_id)
    async with probe.socket(query=token) as socket:
        return await _answered(socket)


async def token_in_header(probe: Probe) -> str:
    """Open a socket with the token in the Authorization header."""
    async with probe.socket(probe.tokens.issue(probe.cast.seats[0].user_id)) as socket:
        return await _answered(socket)


async def token_in_subprotocol(probe: Probe) -> str:
    """Open a socket as a browser does."""
    token = probe.tokens.issue(probe.cast.seats[0].user_id)
    async with probe.socket(subprotocols=["muster", token]) as socket:
        selected = socket.connection.subprotocol
        if selected != "muster":
            raise Broken(
                f"The answer selects {'no subprotocol' if selected is None else 'another subprotocol'}.",
                "A browser closes such a connection: check that $connect's headers reach the client.",
            )
        return "The answer selects muster. " + await _answered(socket)


async def _answered(socket: Socket) -> str:
    reply = await socket.ask({"action": "ping"})
    if reply.get("type") != "pong":
        raise Broken(f"A ping was answered with {reply.get('code', 'another message')}.", DEFAULT_LOG)
    return f"Opened in {1000 * socket.handshake_seconds:.0f} ms, and a ping was answered."


async def refused_401(probe: Probe) -> str:
    """Try tokens that must not be accepted, and none."""
    tokens: dict[str, str | None] = {"no token": None}
    tokens |= probe.tokens.refused(probe.cast.seats[0].user_id)
    return await _refused(probe, tokens, 401)


async def refused_403(probe: Probe) -> str:
    """Try good tokens of users who may not connect."""
    users = {"an inactive user": probe.cast.inactive, "an unknown user": probe.cast.unknown}
    return await _refused(probe, {who: probe.tokens.issue(user.user_id) for who, user in users.items()}, 403)


async def _refused(probe: Probe, tokens: Mapping[str, str | None], expected: int) -> str:
    wrong = []
    for what, token in tokens.items():
        try:
            async with probe.socket(token):
                wrong.append(f"{what} was accepted")
        except InvalidStatus as refusal:
            if refusal.response.status_code != expected:
                wrong.append(f"{what} was answered with {refusal.response.status_code}")
    if wrong:
        raise Broken(f"{'; '.join(wrong)}; {expected} was expected.".capitalize(), CONNECT_LOG)
    return f"{expected} for {', '.join(tokens)}."


# ---- Frames


async def replies(probe: Probe) -> str:
    """Ask for a pong and for an error."""
    async with probe.socket(probe.tokens.issue(probe.cast.seats[0].user_id)) as socket:
        try:
            pong = await socket.ask({"action": "ping"})
        except TimeoutError:
            raise Broken(
                "A ping got no reply.",
                "Check that the route $default has a route response and that its stage is deployed.",
            ) from None
        connected = _seconds(pong["connectedAt"])
        rolls_over = _seconds(pong["reconnectBy"]) - connected
        problems = []
        if pong["idleTimeoutSeconds"] != IDLE_SECONDS:
            problems.append(f"idleTimeoutSeconds is {pong['idleTimeoutSeconds']}, not {IDLE_SECONDS}")
        if abs(rolls_over - ROLL_OVER_SECONDS) > 1:
            problems.append(f"reconnectBy is {rolls_over:.0f} s after connectedAt, not {ROLL_OVER_SECONDS}")
        if _seconds(pong["expiresAt"]) <= _seconds(pong["serverTime"]):
            problems.append("expiresAt has passed")
        error = await socket.ask("this is no JSON")
        if error.get("code") != "invalid_json":
            problems.append(f"a frame that is no JSON was answered with {error.get('code')}")
        if problems:
            raise Broken("; ".join(problems).capitalize() + ".", "Deploy the version that you verify with.")
    return "A ping got its pong with its id and every field; a frame that is no JSON got an error."


async def connect_action(probe: Probe) -> str:
    """Send a frame whose action is the name of a route."""
    async with probe.socket(probe.tokens.issue(probe.cast.seats[0].user_id)) as socket:
        await socket.connection.send(json.dumps({"action": "$connect", "id": "route"}))
        reply = await socket.ask({"action": "ping"})
        if reply.get("type") != "pong":
            raise Broken("The connection is not usable afterwards.", CONNECT_LOG)
    return "The connection stayed usable."


async def large_frame(probe: Probe) -> str:
    """Send the largest frame, then one byte more."""
    user_id = probe.cast.seats[0].user_id
    async with probe.socket(probe.tokens.issue(user_id)) as socket:
        fits = await socket.ask(_padded(FRAME_BYTES))
        if fits.get("code") != "invalid_message":
            raise Broken(f"A frame of {FRAME_BYTES} bytes was answered with {fits.get('code')}.", DEFAULT_LOG)
    async with probe.socket(probe.tokens.issue(user_id)) as socket:
        await socket.connection.send(json.dumps(_padded(FRAME_BYTES + 1)))
        try:
            code = await socket.close_code(CLOSE_SECONDS)
        except TimeoutError:
            raise Broken(
                "The connection stayed open.", "Tell Muster's maintainers: AWS documents 1009."
            ) from None
    if code != 1009:
        raise Broken(
            f"The connection was closed with {code}.", "Tell Muster's maintainers: AWS documents 1009."
        )
    return f"{FRAME_BYTES} bytes were answered, one more closed the connection with 1009."


def _padded(size: int) -> dict[str, Any]:
    """Return a ping of so many bytes that the server refuses for its padding."""
    frame = {"id": "padded", "action": "ping", "padding": ""}
    return frame | {"padding": "x" * (size - len(json.dumps(frame)))}


# ---- Clients and indexes


async def clients(probe: Probe) -> str:
    """Connect every client and leave them open."""
    await probe.open.enter_async_context(probe.seats)
    timing = Timing.of(seat.handshake_seconds for seat in probe.seats.all)
    return (
        f"{len(probe.seats.all)} connected; handshakes p50 {timing.p50_ms:.0f}, max {timing.max_ms:.0f} ms."
    )


async def index(probe: Probe) -> str:
    """Wait until the indexes that broadcasts read know every client, and one that connects now."""
    for user in probe.cast.seats:
        await _indexed(probe, user, SETTLE_SECONDS)
    slowest = 0.0
    for _ in range(ROUNDS):
        async with probe.socket(probe.tokens.issue(probe.cast.nested.user_id)):
            began = time.monotonic()
            await _indexed(probe, probe.cast.nested, SETTLE_SECONDS)
            slowest = max(slowest, time.monotonic() - began)
        await probe.indexed(probe.cast.nested.user_id, 0, SETTLE_SECONDS)
    return f"A new connection was in the index after {1000 * slowest:.0f} ms at most."


async def _indexed(probe: Probe, user: User, seconds: float) -> None:
    if not await probe.indexed(user.user_id, 1, seconds):
        raise Broken(
            f"A connection was not in the index after {seconds:g} s.",
            "Look at the table's throttles. Clients resume after that time, and would miss a broadcast.",
        )


async def connection_ids(probe: Probe) -> str:
    """Post to connections whose ids hold `=`."""
    seats = probe.seats.all
    ids = {
        seat.name: row["connectionId"]["S"]
        for seat in seats
        for row in await probe.connections_of(seat.user.user_id)
    }
    special = [seat for seat in seats if "=" in ids.get(seat.name, "")][:MOST_NAMED]
    if not special:
        raise CannotTell("No connection id of this run holds a `=`.")
    await _broadcast(
        probe, "message to ids with =", {"users": [seat.user.user_id for seat in special]}, special
    )
    return f"{len(special)} of {len(ids)} ids hold a `=`, and a message arrived at each of them."


# ---- Broadcasts


async def to_users(probe: Probe) -> str:
    """Broadcast to half of the users by name."""
    chosen = probe.seats.all[: min((len(probe.seats.all) + 1) // 2, MOST_NAMED)]
    await _broadcast(probe, "message to users", {"users": [seat.user.user_id for seat in chosen]}, chosen)
    return f"The receipt counts {len(chosen)} delivered, and it arrived at those {len(chosen)}."


async def to_shelter(probe: Probe) -> str:
    """Broadcast to the run's shelter."""
    chosen = [seat for seat in probe.seats.all if seat.user.shelter_id]
    await _broadcast(probe, "message to the shelter", {"shelters": [probe.shelter]}, chosen)
    return f"The receipt counts {len(chosen)} delivered, and it arrived at those {len(chosen)}."


async def _broadcast(
    probe: Probe, what: str, target: Mapping[str, Any], seats: Sequence[Seat], *, real: bool = False
) -> tuple[Receipt, float]:
    """Broadcast, and compare its receipt and its arrivals with the seats; return the seconds to the last.

    `real` says that the target holds people beyond the run, whom the receipt counts too.
    """
    began = time.perf_counter()
    execution = await probe.start(target, {"text": TEXT})
    receipt = await probe.receipt(execution)
    probe.seats.expect(receipt.id, what, seats)
    for audience in ("all",) if "all" in target else [f"role#{role}" for role in target.get("roles", ())]:
        await probe.note(f"message:{audience}:{receipt.id}")
    await probe.seats.arrivals(receipt.id, seats)
    missing = [seat for seat in seats if receipt.id not in seat.received]
    if missing:
        raise Broken(f"The {what} did not arrive at {len(missing)} of {len(seats)} clients.", DELIVER_LOG)
    counts = (receipt.audience, receipt.delivered, receipt.gone, receipt.failed, receipt.offline)
    if not real and counts != (len(seats), len(seats), 0, 0, 0):
        raise Broken(
            f"The receipt counts {receipt.delivered} of {receipt.audience} delivered, {receipt.gone} gone, "
            f"{receipt.failed} failed and {receipt.offline} published; {len(seats)} delivered were expected.",
            DELIVER_LOG,
        )
    return receipt, max((seat.received[receipt.id] for seat in seats), default=began) - began


async def repeated_name(probe: Probe) -> str:
    """Start a broadcast twice under one name, then another under it."""
    seat = probe.seats.all[0]
    target, name = {"users": [seat.user.user_id]}, uuid4().hex
    first = await probe.start(target, {"text": TEXT}, name=name)
    receipt = await probe.receipt(first)
    probe.seats.expect(receipt.id, "message that is sent twice", [seat])
    await probe.seats.arrivals(receipt.id, [seat])
    again = await probe.start(target, {"text": TEXT}, name=name)
    if again.arn != first.arn or (await probe.receipt(again)).id != receipt.id:
        raise Broken(
            "The same name started a second broadcast.", "Check that broadcast is a STANDARD machine."
        )
    try:
        await probe.start(target, {"text": f"{TEXT} Again."}, name=name)
    except IdempotencyConflict:
        return "The same name gave the same message; another message under it was refused."
    raise Broken(
        "Another broadcast was started under a used name.", "Check that broadcast is a STANDARD machine."
    )


@contextlib.asynccontextmanager
async def _sender(probe: Probe) -> AsyncIterator[tuple[Socket, str]]:
    """Open a socket of a user whose role may send alerts.

    The user has that role only meanwhile: a real broadcast to it would count this connection too.
    """
    sender = probe.cast.sender
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
    """Let a client send, repeat itself, reuse its id, and send what the schema refuses."""
    seat = probe.seats.all[0]
    frame = _alert(probe, seat.user, TEXT)
    if "alert" not in probe.permissions.get(probe.role, {"actions": ()})["actions"]:
        async with probe.socket(probe.tokens.issue(probe.cast.sender.user_id)) as socket:
            forbidden = await socket.ask(frame)
        if forbidden.get("code") != "forbidden":
            got = forbidden.get("code") or forbidden.get("type")
            raise Broken(f"A role without alert got {got}, not forbidden.", "Check the input roles.")
    async with _sender(probe) as (socket, role):
        first = await socket.ask(frame)
        if first.get("type") != "ack":
            raise Broken(f"An alert was answered with {first.get('code')}.", DEFAULT_LOG)
        execution = probe.broadcaster.execution(first["execution"])
        probe.follow(execution)
        probe.seats.expect(first["id"], "alert of a client", [seat])
        again = await socket.ask(frame)
        conflict = await socket.ask(frame | {"payload": {"text": f"{TEXT} Again."}})
        invalid = await socket.ask({**_alert(probe, seat.user, TEXT), "payload": []})
        await probe.receipt(execution)
        await probe.seats.arrivals(first["id"], [seat])
    if first["id"] not in seat.received:
        raise Broken("It did not arrive.", DELIVER_LOG)
    if again.get("id") != first["id"]:
        raise Broken("The same id was acknowledged with another message.", DEFAULT_LOG)
    if conflict.get("code") != "conflict":
        raise Broken(f"Another message under the id got {conflict.get('code')}, not conflict.", DEFAULT_LOG)
    faults = [fault["pointer"] for fault in invalid.get("faults", ())]
    if (invalid.get("code"), faults) != ("invalid_message", ["/payload"]):
        raise Broken(f"A list as payload got {invalid.get('code')} about {faults}.", DEFAULT_LOG)
    return f"An alert by the role {role} arrived; its id repeated started nothing; the rest was refused."


async def largest_message(probe: Probe) -> str:
    """Send the largest message that is promised, and one byte more.

    By a client: a service's request that is refused is a failed execution, for which an alarm goes off.
    """
    receiver = probe.cast.nested
    token = probe.tokens.issue(receiver.user_id)
    async with probe.socket(token) as socket, _sender(probe) as (sender, _):
        await _indexed(probe, receiver, SETTLE_SECONDS)

        async def send(text: str) -> dict[str, Any]:
            reply = await sender.ask(_alert(probe, receiver, text))
            if reply.get("type") == "ack":
                execution = probe.broadcaster.execution(reply["execution"])
                probe.follow(execution)
                await probe.receipt(execution)
            return reply

        overhead = len((await socket.message((await send(""))["id"])).encode())
        text = "x" * (ENVELOPE_BYTES - overhead)
        reply = await send(text)
        if reply.get("type") != "ack":
            raise Broken(f"A message of {ENVELOPE_BYTES} bytes got {reply.get('code')}.", DEFAULT_LOG)
        frame = await socket.message(reply["id"])
        if len(frame.encode()) != ENVELOPE_BYTES or json.loads(frame)["payload"]["text"] != text:
            raise Broken(f"It arrived as {len(frame.encode())} bytes, changed.", DELIVER_LOG)
        over = await send(f"{text}x")
    await probe.indexed(receiver.user_id, 0, SETTLE_SECONDS)
    if over.get("code") != "too_large":
        got = over.get("code") or over.get("type")
        raise Broken(f"A message of {ENVELOPE_BYTES + 1} bytes got {got}, not too_large.", DEFAULT_LOG)
    return f"A message of {ENVELOPE_BYTES} bytes arrived whole; one byte more was refused."


# ---- Those who are away


async def resume(probe: Probe) -> str:
    """Send to a user who is away, and reconnect."""
    user = probe.cast.away
    target = {"users": [user.user_id]}
    async with probe.socket(probe.tokens.issue(user.user_id)) as socket:
        await _indexed(probe, user, SETTLE_SECONDS)
        before = await probe.receipt(await probe.start(target, {"text": TEXT}))
        await socket.message(before.id)
    await _gone_from_index(probe, user)
    missed = await probe.receipt(await probe.start(target, {"text": TEXT}))
    if missed.audience:
        raise CannotTell("The closed connection was still known when the message was sent.")
    brought: list[str] = []
    async with probe.socket(probe.tokens.issue(user.user_id)) as socket:
        request: dict[str, Any] = {"action": "resume", "after": before.id}
        while request:
            reply = await socket.ask(request)
            brought += [message["id"] for message in reply["messages"]]
            request = {"action": "resume", "cursor": reply["cursor"]} if reply["more"] else {}
    if missed.id not in brought:
        raise Broken("A resume did not bring the message that was missed.", DEFAULT_LOG)
    if brought != sorted(brought):
        raise Broken("A resume brought messages in another order than that of their ids.", DEFAULT_LOG)
    return "The message that was sent meanwhile came with the first resume."


async def hard_close(probe: Probe) -> str:
    """Cut a connection, and send to its user."""
    user = probe.cast.hard
    async with probe.socket(probe.tokens.issue(user.user_id)) as socket:
        await socket.ask({"action": "ping"})
        await _indexed(probe, user, SETTLE_SECONDS)
        socket.reset()
    began = time.monotonic()
    while True:
        receipt = await probe.receipt(await probe.start({"users": [user.user_id]}, {"text": TEXT}))
        seconds = time.monotonic() - began
        if not receipt.delivered:
            how = "its row was deleted" if not receipt.audience else "posts to it answer 410"
            return f"Noticed after {seconds:.1f} s: {how}."
        if seconds > CLOSE_SECONDS:
            raise Broken(
                f"A connection that was cut {seconds:.0f} s ago still counts as delivered.",
                "Such messages arrive by resume only: see docs/delivery.md.",
            )


async def fallback(probe: Probe) -> str:
    """Leave a row of a closed connection behind, send with the fallback, and read SNS."""
    hard, absent = probe.cast.hard, probe.cast.absent
    others = await probe.others_who_match([hard, absent])
    if others and not probe.consent.subscribers:
        raise CannotTell(
            f"Not checked: the notifications would also go to {'; '.join(others)}.",
            "Repeat it with --notify-subscribers if those may get two notifications about users of the run.",
        )
    async with probe.socket(probe.tokens.issue(hard.user_id)) as socket:
        await socket.ask({"action": "ping"})
        rows = await probe.indexed(hard.user_id, 1, SETTLE_SECONDS)
        socket.reset()
    await _gone_from_index(probe, hard)
    # As if $disconnect had never come, which AWS calls at best effort; older than a handshake takes.
    row = rows[0] | {"connectedAt": {"S": "2000-01-01T00:00:00.000Z"}}
    await probe.call("dynamodb", "put_item", TableName=probe.outputs.connections_table, Item=row)
    await probe.indexed(hard.user_id, 1, SETTLE_SECONDS)
    async with probe.queue([hard, absent]) as read:
        target = {"users": [hard.user_id, absent.user_id]}
        execution = await probe.start(target, {"text": TEXT}, offline="fallback")
        receipt = await probe.receipt(execution)
        found = await read(receipt.id, 2)
    counts = (receipt.audience, receipt.gone, receipt.offline, receipt.offline_failed)
    if counts != (1, 1, 2, 0):
        raise Broken(f"The receipt counts {receipt.to_dict()}.", "Read the log of the offline function.")
    expected = {hard.user_id: "gone", absent.user_id: "absent"}
    if found != expected:
        raise Broken(
            f"Of two notifications {len(found)} reached the run's queue, with the reasons "
            f"{', '.join(sorted(found.values())) or 'none'}; gone and absent were expected.",
            "Read the log of the offline function, and look at the topic's delivery failures.",
        )
    if await probe.connections_of(hard.user_id):
        raise Broken("The row of the closed connection was not deleted.", "Read the log of offline.")
    return "A user whose connection is gone and one without any were published, each with its reason."


async def _gone_from_index(probe: Probe, user: User) -> None:
    rows = await probe.indexed(user.user_id, 0, CLOSE_SECONDS)
    for row in rows:
        # $disconnect is called at best effort.
        await probe.forget_connection(row["connectionId"]["S"])
    await probe.indexed(user.user_id, 0, SETTLE_SECONDS)


# ---- Time


async def long_run(probe: Probe) -> str:
    """Run a fan-out, nested in a STANDARD machine as broadcast does, that posts to few connections slowly.

    Large rows make small pages: DynamoDB ends one at 1 MB. So the run goes through several pages and ends
    near the 45 s after which it begins no other.
    """
    if (await function(probe, "deliver"))["Timeout"] < DELIVER_SECONDS:
        raise CannotTell("The deliver function may not run for as long as this takes.")
    user = probe.cast.nested
    probe.check_target({"users": [user.user_id]})
    identifier = str(uuid4())
    envelope = json.dumps(
        {"type": "broadcast", "id": identifier, "sentAt": _now(), "sender": SENDER, "payload": {"text": TEXT}}
    )
    async with contextlib.AsyncExitStack() as sockets:
        opened = [
            await sockets.enter_async_context(probe.socket(probe.tokens.issue(user.user_id)))
            for _ in range(LONG_CONNECTIONS)
        ]
        rows = await probe.indexed(user.user_id, LONG_CONNECTIONS, SETTLE_SECONDS)
        for row in rows:
            await probe.pad_connection(row["connectionId"]["S"], PADDING_BYTES)
        await probe.paged(user.user_id, SETTLE_SECONDS)
        seconds, output = await probe.run_nested(
            {
                "message": {
                    "messageId": identifier,
                    "type": "broadcast",
                    "envelope": envelope,
                    "offline": "never",
                },
                "partition": {"scope": "user", "value": user.user_id},
                "query": {
                    "IndexName": "UserIndex",
                    "KeyConditionExpression": "#key = :key",
                    "FilterExpression": "#ttl > :now",
                    "ProjectionExpression": "connectionId, userId, connectedAt",
                    "ExpressionAttributeNames": {"#key": "userId", "#ttl": "ttl"},
                    "ExpressionAttributeValues": {},
                },
                "pace": {"rate": 1 / SECONDS_PER_POST, "burst": 1, "credit": 0},
                "cursor": None,
            }
        )
        counts = output["counts"]
        if (counts["audience"], counts["delivered"]) != (LONG_CONNECTIONS, LONG_CONNECTIONS):
            raise Broken(
                f"It delivered to {counts['delivered']} of {counts['audience']} connections, "
                f"{LONG_CONNECTIONS} were expected.",
                DELIVER_LOG,
            )
        for socket in opened:
            await socket.message(identifier)
    if seconds < LONG_SECONDS:
        raise CannotTell(f"The run took {seconds:.0f} s and {counts['pages']} pages; its limit is 45 s.")
    return f"A nested run of {seconds:.0f} s and {counts['pages']} pages returned its counts."


async def latency(probe: Probe) -> str:
    """Time broadcasts to every client, and handshakes, once everything runs."""
    seats = probe.seats.all
    chosen = seats[:MOST_NAMED]
    target = {"users": [seat.user.user_id for seat in chosen]}
    await _broadcast(probe, "message before the clock runs", target, chosen)
    broadcasts = [
        (await _broadcast(probe, f"timed message {n}", target, chosen))[1] for n in range(1, ROUNDS + 1)
    ]
    handshakes = []
    for _ in range(ROUNDS):
        async with probe.socket(probe.tokens.issue(seats[0].user.user_id)) as socket:
            handshakes.append(socket.handshake_seconds)
    limits = {
        f"from start to the last of {len(chosen)} arrivals": (
            Timing.of(broadcasts),
            broadcast_limit_ms(len(chosen)),
        ),
        "handshake": (Timing.of(handshakes), HANDSHAKE_LIMIT_MS),
    }
    figures = "; ".join(
        f"{name}: p50 {timing.p50_ms:.0f}, max {timing.max_ms:.0f} ms (limit {limit:.0f})"
        for name, (timing, limit) in limits.items()
    )
    if any(timing.max_ms >= limit for timing, limit in limits.values()):
        fix = "Repeat it near the region: the network counts. Otherwise look at cold starts and throttles."
        raise Broken(f"Too slow: {figures}.", fix)
    return f"{figures[0].upper()}{figures[1:]}."


# ---- Everybody, with consent


async def scopes(probe: Probe) -> str:
    """Broadcast to real people, whose number was confirmed."""
    done = []
    if "all" in probe.consent.scopes:
        receipt, _ = await _broadcast(probe, "message to all", {"all": True}, probe.seats.all, real=True)
        done.append(f"all: {receipt.delivered} of {receipt.audience} delivered")
    if "role" in probe.consent.scopes:
        role = min(probe.permissions)
        await probe.set_role(probe.cast.sender, role)
        async with probe.socket(probe.tokens.issue(probe.cast.sender.user_id)) as socket:
            await _indexed(probe, probe.cast.sender, SETTLE_SECONDS)
            receipt, _ = await _broadcast(probe, f"message to {role}", {"roles": [role]}, [], real=True)
            await socket.message(receipt.id)
        done.append(f"role {role}: {receipt.delivered} of {receipt.audience} delivered")
    return "; ".join(done) + "."


async def nobody_else(probe: Probe) -> str:
    """Compare what every client received with everything that was sent."""
    await probe.seats.settle()
    if problems := probe.seats.differences(others=True):
        raise Broken("; ".join(problems)[:1000], DELIVER_LOG)
    repeated = sum(seat.client.duplicates for seat in probe.seats.all if seat.client)
    again = f" {repeated} came twice, which at-least-once delivery allows." if repeated else ""
    return f"No client got a message that was not for it.{again}"


async def idle(probe: Probe) -> str:
    """Leave a connection alone."""
    async with probe.socket(probe.tokens.issue(probe.cast.away.user_id)) as socket:
        began = time.monotonic()
        try:
            await socket.close_code(IDLE_SECONDS + 60)
        except TimeoutError:
            raise Broken(
                f"The connection was open after {IDLE_SECONDS + 60} idle seconds.", "None."
            ) from None
        seconds = time.monotonic() - began
    if seconds < IDLE_SECONDS - 60:
        raise Broken(f"It was closed after {seconds:.0f} idle seconds.", "Send pings more often.")
    return f"Closed after {seconds:.0f} idle seconds."


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


MUSTER = "Muster: docs/protocol.md"
DELIVERY = "Muster: docs/delivery.md"

CHECKS = (
    Check("query", "A token is accepted as ?Authorization=.", MUSTER, token_in_query),
    Check("header", "A token is accepted in the Authorization header.", MUSTER, token_in_header),
    Check(
        "subprotocol",
        "A token is accepted as a subprotocol, and `muster` is selected.",
        "AWS: WebSocket APIs that require the Sec-WebSocket-Protocol header",
        token_in_subprotocol,
    ),
    Check("refused-tokens", "A token that does not hold is answered with 401.", MUSTER, refused_401),
    Check("refused-users", "A user who may not connect is answered with 403.", MUSTER, refused_403),
    Check("replies", "A client's frame gets its reply.", "AWS: route responses of WebSocket APIs", replies),
    Check(
        "route-names",
        "A frame whose action is $connect does no harm.",
        "Muster: docs/local-stack.md",
        connect_action,
    ),
    Check(
        "large-frame",
        "A frame over 32 KB closes the connection with 1009.",
        "AWS: API Gateway WebSocket quotas",
        large_frame,
    ),
    Check("clients", "Many clients connect at once.", MUSTER, clients),
    Check(
        "index",
        "A connection is in the indexes a few seconds after it opened.",
        DELIVERY,
        index,
        needs=("header",),
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
        "Posts reach connections whose ids hold `=`.",
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
        MUSTER,
        client_sends,
        needs=("clients",),
    ),
    Check(
        "largest",
        "A message of 30 KiB arrives; a larger one is refused.",
        MUSTER,
        largest_message,
        ("header",),
    ),
    Check("resume", "A resume brings what was missed.", DELIVERY, resume, needs=("header",)),
    Check(
        "hard-close",
        "A connection that was cut no longer counts as delivered.",
        "AWS: GoneException of PostToConnection",
        hard_close,
        needs=("header",),
    ),
    Check(
        "fallback", "Users who were not reached are published to SNS.", DELIVERY, fallback, needs=("header",)
    ),
    Check(
        "long-run",
        "A nested run near its time limit returns its counts.",
        "AWS: aws-sdk:sfn:startSyncExecution, whose time limit is not documented",
        long_run,
        needs=("header",),
    ),
    Check(
        "latency",
        "A broadcast arrives within 3 s, a handshake takes under 2 s.",
        "Muster: docs/verify.md",
        latency,
        needs=("clients",),
    ),
    Check("scopes", "A broadcast to all and to a role arrives.", DELIVERY, scopes, needs=("clients",)),
    Check("nobody-else", "No client gets what is not for it.", DELIVERY, nobody_else, needs=("clients",)),
    Check(
        "idle",
        "A connection is closed after ten idle minutes.",
        "AWS: API Gateway WebSocket quotas",
        idle,
        needs=("header",),
    ),
)
