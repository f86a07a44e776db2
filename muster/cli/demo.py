"""`muster demo`: the whole pipeline on this machine, with a check of every message."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from muster.cli.console import echo_json, progress, stderr, stdout
from muster.cli.interrupts import Interrupts
from muster.cli.options import Command
from muster.demo import run
from muster.demo.report import rendered
from muster.demo.script import FEWEST_CLIENTS
from muster.errors import DemoFailed, MusterError
from muster.local.stack import Stack
from muster.outputs import Outputs
from muster.progress import Progress

app = typer.Typer()
command = partial(app.command, cls=Command, rich_help_panel="Demo")


@command()
def demo(
    clients: Annotated[
        int, typer.Option(min=FEWEST_CLIENTS, help="How many WebSocket clients connect.")
    ] = 50,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the demo's stack running, and print how to stop it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Start a stack, connect clients, broadcast to them, and check what each one receives.

    Uses a stack of its own, which may run beside another one, and removes it afterwards. When a message is
    missing or a limit is exceeded, it lists the problems and exits with 1.
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
        for part in rendered(report):
            stdout.print(part)
    if report.problems:
        raise DemoFailed("\n".join(["The demo failed:", *(f"- {problem}" for problem in report.problems)]))


@contextmanager
def _temporary_stack(port: int, keep: bool, shown: Progress) -> Iterator[Outputs]:
    stack = Stack(Path(tempfile.mkdtemp(prefix="muster-demo-")), port=port, progress=shown)
    leave = keep
    try:
        yield stack.up()
    except MusterError as error:
        # A stack that fails to start stops itself. Its folder is kept when the error names a log in it.
        leave = str(stack.log_file) in (error.fix or "") or (keep and stack.status().phase != "down")
        raise
    finally:
        if not leave:
            stack.down()
        elif stack.status().phase != "down":
            stderr.print(f"The stack keeps running. Stop it with `muster down --state-dir {stack.state_dir}`")


def _allow_many_sockets(wanted: int = 4096) -> None:
    """Raise the limit of open files, for this process and the emulator. The default on macOS is 256."""
    try:
        import resource  # noqa: PLC0415 - Windows lacks it, and has no such limit
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
