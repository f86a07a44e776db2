"""Checks of how long things take."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from uuid import uuid4

from muster.client import SETTLE_SECONDS
from muster.listeners import HANDSHAKE_LIMIT_MS, Timing, broadcast_limit_ms
from muster.verify.account import function
from muster.verify.broadcasts import ROUNDS, TEXT, broadcast
from muster.verify.check import Check
from muster.verify.probe import Probe
from muster.verify.rows import Broken, CannotTell
from muster.verify.sources import DELIVER_LOG
from muster.verify.targets import MOST_NAMED

LONG_CONNECTIONS = 6
SECONDS_PER_POST = 7.5
PADDING_BYTES = 390_000
"""Six posts at this pace take 45 s. A page contains two or three rows of this size [DynamoDB Query, 1 MB],
and its batch takes at most 23 of the 30 s that deliver may run."""

DELIVER_SECONDS = 30
LONG_SECONDS = 40.0


async def long_run(probe: Probe) -> str:
    """Run a slow fan-out that is nested in a STANDARD machine, as in a broadcast.

    DynamoDB ends a page at 1 MB, so large rows make several pages of few connections. The run ends shortly
    before 45 s, after which fanout starts no further page.
    """
    if (await function(probe, "deliver"))["Timeout"] < DELIVER_SECONDS:
        raise CannotTell("The timeout of the deliver function is too short for this check.")
    user = probe.users.nested
    probe.check_target({"users": [user.user_id]})
    identifier = str(uuid4())
    envelope = json.dumps(
        {
            "type": "broadcast",
            "id": identifier,
            "sentAt": _now(),
            "sender": probe.sender,
            "payload": {"text": TEXT},
        }
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
                f"and {LONG_CONNECTIONS} were expected.",
                DELIVER_LOG,
            )
        for socket in opened:
            await socket.message(identifier)
    if seconds < LONG_SECONDS:
        raise CannotTell(
            f"The run took only {seconds:.0f} s and {counts['pages']} pages; the limit under test is 45 s."
        )
    return f"A nested run of {seconds:.0f} s and {counts['pages']} pages returned its counts."


async def latency(probe: Probe) -> str:
    """Measure broadcasts to every client, and handshakes, on warm Lambdas."""
    listeners = probe.listeners.all
    chosen = listeners[:MOST_NAMED]
    target = {"users": [listener.user.user_id for listener in chosen]}
    await broadcast(probe, "message that warms up the Lambdas", target, chosen)
    broadcasts = [
        (await broadcast(probe, f"timed message {n}", target, chosen))[1] for n in range(1, ROUNDS + 1)
    ]
    handshakes = []
    for _ in range(ROUNDS):
        async with probe.socket(probe.tokens.issue(listeners[0].user.user_id)) as socket:
            handshakes.append(socket.handshake_seconds)
    measured = [
        (
            f"from start to the last of {len(chosen)} arrivals",
            Timing.of(broadcasts),
            broadcast_limit_ms(len(chosen)),
        ),
        ("handshake", Timing.of(handshakes), HANDSHAKE_LIMIT_MS),
    ]
    figures = "; ".join(
        f"{name}: p50 {timing.p50_ms:.0f}, max {timing.max_ms:.0f} ms (limit {limit:.0f})"
        for name, timing, limit in measured
    )
    if any(timing.max_ms >= limit for _name, timing, limit in measured):
        raise Broken(
            f"Too slow: {figures}.",
            "Repeat it near the region: the network counts. Then look for cold starts and throttles.",
        )
    return f"{figures[0].upper()}{figures[1:]}."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


CHECKS = (
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
)
