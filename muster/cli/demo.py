"""`muster demo`: the whole pipeline on this machine, with a verdict."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from muster.cli.console import echo_json, progress, stderr, stdout
from muster.cli.interrupts import Interrupts
from muster.demo.script import FEWEST_CLIENTS, Missed, Report, run
from muster.errors import DemoFailed, MusterError
from muster.local.stack import Stack
from muster.outputs import Outputs
from muster.progress import Progress

app = typer.Typer()


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
    with (
        Interrupts("the stack is being removed") as interrupts,
        progress() as shown,
        _temporary_stack(port, keep, shown) as outputs,
    ):
        report = interrupts.run(run(outputs, clients, shown))
    if as_json:
        echo_json(asdict(report) | {"passed": not report.problems}, indent=2)
    else:
        _print(report)
    if report.problems:
        raise DemoFailed("\n".join(["The demo failed:", *(f"- {problem}" for problem in report.problems)]))


@contextmanager
def _temporary_stack(port: int, keep: bool, shown: Progress) -> Iterator[Outputs]:
    stack = Stack(Path(tempfile.mkdtemp(prefix="muster-demo-")), port=port, progress=shown)
    leave = keep
    try:
        yield stack.up()
    except MusterError as error:
        # A stack that does not come up stops by itself. Its folder stays where the error points to its log.
        leave = str(stack.log_file) in (error.fix or "") or (keep and stack.status().phase != "down")
        raise
    finally:
        if not leave:
            stack.down()
        elif stack.status().phase != "down":
            stderr.print(f"The stack stays up. Stop it with `muster down --state-dir {stack.state_dir}`")


def _allow_many_sockets(wanted: int = 4096) -> None:
    """Raise how many files this process and the emulator it starts may open; macOS begins with 256."""
    try:
        import resource  # noqa: PLC0415 - not on Windows, which has no such limit
    except ImportError:
        return
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
        verdict = Text("met", "green") if limit.met else Text("missed", "red")
        limits.add_row(limit.name, f"{limit.measured_ms:.0f}", f"{limit.limit_ms:.0f}", verdict)
    stdout.print(limits)
    _print_missed(report.missed)
    if not report.problems:
        stdout.print("Every client got exactly what was meant for it, once, and nothing else.", style="green")


def _print_missed(missed: Missed) -> None:
    stdout.print(f"{missed.user_id} was disconnected and then sent an alert:")
    if missed.notification:
        reason = missed.notification["reason"]
        stdout.print(f"  SNS put it into the queue, for {missed.user_id}, with the reason {reason!r}:")
        stdout.print_json(data=missed.notification, indent=None)
    if missed.resumed:
        stdout.print(f"  It came back on resume, {missed.resumed_after_ms:.0f} ms after reconnecting began.")
