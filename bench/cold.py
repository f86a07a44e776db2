"""How much longer a broadcast takes with cold functions, on the embedded stack with 50 clients.

It measures the time from StartExecution to the last client: with every function warm, with Accept and Deliver
cold, and with each of them cold. It also measures the emulator's share of a cold start, with a function that
does nothing, with and without the layer, which the emulator unpacks for each environment. A cold broadcast
has two cold starts, so it takes at least two such shares longer than a warm one.
"""

import argparse
import asyncio
import io
import json
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect

from muster import Broadcaster
from muster.local.seed import USERS
from muster.local.stack import Stack
from muster.outputs import Outputs
from muster.tokens import TokenIssuer

CLIENTS = 50
LIMIT = 2.0
"""The target: cold divided by warm, without the emulator's share."""

WAYS: dict[str, Sequence[str]] = {
    "warm": (),
    "cold": ("accept", "deliver"),
    "accept cold": ("accept",),
    "deliver cold": ("deliver",),
}


def chill(outputs: Outputs, function_name: str) -> None:
    """Change a variable of the function, so that its next event starts in a new environment."""
    functions: Any = outputs.client("lambda")  # the stubs allow no delay below a second
    found = functions.get_function_configuration(FunctionName=function_name)
    variables = found.get("Environment", {}).get("Variables", {}) | {"CHILLED": str(time.time_ns())}
    functions.update_function_configuration(FunctionName=function_name, Environment={"Variables": variables})
    functions.get_waiter("function_updated_v2").wait(
        FunctionName=function_name, WaiterConfig={"Delay": 0.1, "MaxAttempts": 100}
    )


async def until_last(outputs: Outputs, sockets: Sequence[ClientConnection]) -> float:
    """Broadcast to all. Return the seconds from StartExecution to the arrival at the last client."""

    async def arrival(socket: ClientConnection) -> float:
        async for frame in socket:
            if json.loads(frame).get("payload", {}).get("text") == text:
                return time.monotonic()
        raise ConnectionError("the socket closed before the message came")

    text = str(time.time_ns())
    waiting = [asyncio.create_task(arrival(socket)) for socket in sockets]
    broadcaster = Broadcaster.from_outputs(outputs)
    started = time.monotonic()
    execution = await asyncio.to_thread(broadcaster.start, "alert", {"all": True}, {"text": text})
    async with asyncio.timeout(60):
        last = max(await asyncio.gather(*waiting))
    await asyncio.to_thread(broadcaster.wait, execution, 60)
    return last - started


async def broadcasts(outputs: Outputs, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way, measured in alternation."""
    issuer = TokenIssuer.from_outputs(outputs)
    users = [user.user_id for user in USERS if user.active]
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    async with AsyncExitStack() as opened:
        sockets = [
            await opened.enter_async_context(
                connect(
                    outputs.websocket_url,
                    additional_headers={"Authorization": f"Bearer {issuer.issue(user)}"},
                    proxy=None,
                )
            )
            for user in islice(cycle(users), CLIENTS)
        ]
        await until_last(outputs, sockets)
        for _ in range(rounds):
            for way, cold in WAYS.items():
                for name in cold:
                    await asyncio.to_thread(chill, outputs, outputs.function_names[name])
                taken[way].append(await until_last(outputs, sockets))
    return taken


def emulator_shares(outputs: Outputs, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a cold event in a function that does nothing, with and without the layer."""
    functions = outputs.client("lambda")
    accept = functions.get_function_configuration(FunctionName=outputs.function_names["accept"])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as code:
        code.writestr("nothing.py", "def handler(event, context):\n    return {}\n")
    settings: dict[str, Any] = {
        "Runtime": accept["Runtime"],
        "Role": accept["Role"],
        "Handler": "nothing.handler",
        "Code": {"ZipFile": archive.getvalue()},
    }
    layers = {
        "no function, with the layer": [layer["Arn"] for layer in accept["Layers"]],
        "no function, no layer": [],
    }
    taken: dict[str, list[float]] = {way: [] for way in layers}
    for of in layers.values():
        functions.create_function(FunctionName=f"bench-nothing-{len(of)}", Layers=of, **settings)
    for _ in range(rounds):
        for way, of in layers.items():
            name = f"bench-nothing-{len(of)}"
            chill(outputs, name)
            started = time.monotonic()
            functions.invoke(FunctionName=name)
            taken[way].append(time.monotonic() - started)
    return taken


def main() -> int:
    """Measure and print the table. Return 0 when the target is met."""
    parser = argparse.ArgumentParser(prog="python -m bench.cold", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as folder:
        stack = Stack(Path(folder), port=0)
        try:
            outputs = stack.up()
            taken = asyncio.run(broadcasts(outputs, rounds)) | emulator_shares(outputs, rounds)
        finally:
            stack.down()
    least = {way: min(seconds) for way, seconds in taken.items()}
    table = Table("", "least, ms", "median, ms", "of warm", box=None)
    table.title = f"From StartExecution to the last of {CLIENTS} clients"
    for way, seconds in taken.items():
        ratio = f"{least[way] / least['warm']:.1f}" if way in WAYS else ""
        table.add_row(way, f"{least[way] * 1000:.0f}", f"{statistics.median(seconds) * 1000:.0f}", ratio)
    console = Console(width=100)
    console.print(table)
    emulator = 2 * least["no function, with the layer"]
    console.print(f"The emulator's share alone makes it {1 + emulator / least['warm']:.1f} times as long")
    met = least["cold"] - emulator <= LIMIT * least["warm"]
    console.print(
        f"{'met' if met else 'MISSED'}: without it, a cold broadcast takes at most {LIMIT:g} times a warm one"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
