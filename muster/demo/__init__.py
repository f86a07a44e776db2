"""The demo: real clients and real broadcasts, and proof that each client received exactly its messages.

script.py   which users connect, what is sent, and whom each broadcast addresses
room.py     the connected clients, and what is done with them
report.py   figures, problems, and how the command line shows them
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial

from muster.demo.report import Limit, Report
from muster.demo.room import Room
from muster.demo.script import choose_users, script
from muster.listeners import HANDSHAKE_LIMIT_MS, Listeners, Timing, broadcast_limit_ms
from muster.local.seed import USERS, User
from muster.outputs import Outputs
from muster.progress import Progress, Silent
from muster.tokens import TokenIssuer

__all__ = ["run"]

TABLE_OPERATION_LIMIT_MS = 100.0


async def run(outputs: Outputs, clients: int, progress: Progress | None = None) -> Report:
    """Run the demo with at least FEWEST_CLIENTS clients against a freshly seeded local stack.

    The report contains what was wrong. Raises MusterError when the demo cannot continue.
    """
    shown = progress or Silent()
    users = choose_users(clients)
    await asyncio.to_thread(_write_users, outputs, users)
    listeners = Listeners(outputs.websocket_url, TokenIssuer.from_outputs(outputs).issue, users, shown)
    room = Room(outputs, listeners)
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
        shown.step("Checking that no client received anything else")
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
        table.get_item(Key=key)  # opens the HTTP connection, so that no sample contains it
        calls: dict[str, Callable[[], object]] = {
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


def _write_users(outputs: Outputs, users: Iterable[User]) -> None:
    with outputs.resource("dynamodb").Table(outputs.users_table).batch_writer() as batch:
        for user in set(users) - set(USERS):
            batch.put_item(Item=user.item())
