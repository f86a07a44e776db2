"""`muster demo`: the whole pipeline on this machine, with a verdict."""

import asyncio
import contextlib
import json
import resource
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from muster.cli.console import progress, stderr, stdout
from muster.demo import FEWEST_CLIENTS, Missed, Report, run
from muster.errors import MusterError
from muster.outputs import Outputs
from muster.progress import Progress
from muster.stack import Stack

app = typer.Typer()


class DemoFailed(MusterError):
    """Something was missing, went to the wrong client, or took too long; the message lists everything."""


@app.command()
def demo(
    clients: Annotated[
        int, typer.Option(min=FEWEST_CLIENTS, help="How many WebSocket clients connect.")
    ] = 50,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the demo's stack up, and say how to stop it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Bring up a stack, connect clients, broadcast to them, and check who got what.

    Runs on a stack of its own, beside one that is up, and removes it afterwards. Exits with 1 naming whatever
    was missing, and every figure over its limit.
    """
    _allow_many_sockets()
    with _interruptible_once(), progress() as shown, _temporary_stack(port, keep, shown) as outputs:
        report = asyncio.run(run(outputs, clients, shown))
    if as_json:
        typer.echo(json.dumps(asdict(report) | {"passed": not report.problems}, indent=2))
    else:
        _print(report)
    if report.problems:
        raise DemoFailed("\n".join(["The demo failed:", *(f"- {problem}" for problem in report.problems)]))


@contextmanager
def _temporary_stack(port: int, keep: bool, shown: Progress) -> Iterator[Outputs]:
    stack = Stack(Path(tempfile.mkdtemp(prefix="muster-demo-")), port=port, progress=shown)
    try:
        yield stack.up()
    finally:
        if stack.status().phase == "down":
            # It did not come up, and has cleaned up after itself; what it logged stays.
            with contextlib.suppress(OSError):
                stack.state_dir.rmdir()
        elif keep:
            stderr.print(f"The stack stays up. Stop it with `muster down --state-dir {stack.state_dir}`")
        else:
            stack.down()


@contextmanager
def _interruptible_once() -> Iterator[None]:
    """Let the first Ctrl-C, `kill` or closed terminal end the demo, and no later one its cleaning up."""
    interrupted = False

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            stderr.print("Stopping already: the stack is being removed.")
            return
        interrupted = True
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _allow_many_sockets(wanted: int = 4096) -> None:
    """Raise how many files this process and the emulator it starts may open; macOS begins with 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


def _print(report: Report) -> None:
    stdout.print(f"{report.clients} clients of {report.users} users", style="bold")
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("via", "type", "scope"):
        table.add_column(heading)
    for heading in ("audience", "delivered", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for delivery in report.deliveries:
        timing = delivery.timing
        table.add_row(
            delivery.via,
            delivery.type,
            delivery.scope,
            str(delivery.audience),
            str(delivery.delivered),
            f"{timing.p50_ms:.0f}" if timing else "-",
            f"{timing.p99_ms:.0f}" if timing else "-",
        )
    stdout.print(table)
    limits = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    limits.add_column("slowest")
    limits.add_column("ms", justify="right")
    limits.add_column("limit ms", justify="right")
    limits.add_column("")
    for limit in report.limits:
        verdict = "[green]met[/green]" if limit.met else "[red]missed[/red]"
        limits.add_row(limit.name, f"{limit.measured_ms:.0f}", f"{limit.limit_ms:.0f}", verdict)
    stdout.print(limits)
    _print_missed(report.missed)
    if not report.problems:
        stdout.print("[green]Every client got exactly what was meant for it, once, and nothing else.[/green]")


def _print_missed(missed: Missed) -> None:
    stdout.print(f"{missed.user_id} was disconnected and then sent an alert:")
    if missed.notification:
        reason = missed.notification["reason"]
        stdout.print(f"  SNS put it into the queue, for {missed.user_id}, with the reason {reason!r}:")
        stdout.print_json(data=missed.notification, indent=None)
    if missed.resumed:
        stdout.print(f"  It came back on resume, {missed.resumed_after_ms:.0f} ms after reconnecting began.")
