"""`muster up`, `down`, `status`, `build` and `terraform`: the local stack, and builds for AWS."""

import hashlib
import os
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Column, Table

from muster.cli.console import echo_json, progress, stderr, stdout
from muster.cli.options import Command, JsonOption, StateDirOption, url
from muster.local import bundle, repository
from muster.local.stack import DEFAULT_PORT, Stack
from muster.local.terraform import for_command_line
from muster.local.watch import watch
from muster.outputs import Outputs

app = typer.Typer()
command = partial(app.command, cls=Command, rich_help_panel="Stack")


@command()
def up(
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help=f"Port on 127.0.0.1, {DEFAULT_PORT} by default; 0 takes a free one."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            parser=url("https", "http"),
            help="Deploy to an emulator that is already running, such as LocalStack.",
        ),
    ] = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
    watch_files: Annotated[
        bool, typer.Option("--watch", help="Then deploy each saved file until Ctrl-C.")
    ] = False,
) -> None:
    """Start the local stack, or update the running one.

    Starts an AWS emulator on 127.0.0.1, builds the Lambda bundle, applies Terraform and adds demo users. It
    needs no account and no Docker, and does not use your AWS credentials.
    """
    with progress() as shown:
        outputs = Stack(state_dir, port=port, endpoint=endpoint, progress=shown).up()
    if as_json:
        echo_json(outputs.to_dict(), indent=2)
    else:
        _print_next_commands(outputs, state_dir)
    if watch_files:
        watch(Stack(state_dir, port=port, endpoint=endpoint), _print_change)


def _print_next_commands(outputs: Outputs, state_dir: Path | None) -> None:
    """Print the next commands, as they work in this shell and folder."""
    stdout.print(f"The local stack is up on {outputs.endpoint_url}")
    stdout.print(f"Clients connect to {outputs.websocket_url}")
    program = "muster" if shutil.which("muster") else shlex.quote(os.path.relpath(sys.argv[0]))
    given = state_dir is not None and "MUSTER_STATE_DIR" not in os.environ
    options = f" --state-dir {shlex.quote(str(state_dir))}" if given else ""
    folder = (state_dir or repository.default_state_dir()).absolute()
    stdout.print(f"Its state is in {folder}")
    stdout.print("Next, in two terminals:")
    stdout.print(f"  {program} listen --user responder-finn{options}")
    stdout.print(f"  {program} broadcast --to role:first_responder --text 'Water at the east gate'{options}")
    stdout.print("From another folder, first run:")
    stdout.print(f"  export MUSTER_STATE_DIR={shlex.quote(str(folder))}")


def _print_change(text: str, fix: str | None) -> None:
    if fix is None:
        stderr.print(text)
        return
    stderr.print("Error:", text, style="red")
    stderr.print("Fix:", fix)


@command()
def down(state_dir: StateDirOption = None) -> None:
    """Destroy Terraform's resources, stop the local stack and remove its state."""
    with progress() as shown:
        stack = Stack(state_dir, progress=shown)
        was_up = stack.down()
    stdout.print(
        f"The local stack {'is down' if was_up else 'was not up'} (state directory: {stack.state_dir})."
    )


@command()
def status(state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """Print whether the local stack is up. Exits with 1 when it is not."""
    stack = Stack(state_dir)
    now = stack.status()
    if as_json:
        pid = now.process.pid if now.process else None
        outputs = now.outputs.to_dict() if now.outputs else None
        report = {"phase": now.phase, "endpoint_url": now.endpoint_url, "pid": pid, "outputs": outputs}
        echo_json(report, indent=2)
    elif now.phase == "down" and (process := stack.gone()):
        stdout.print(f"The local stack is down: the emulator, process {process.pid}, is gone.")
        stdout.print(f"Its log is {stack.log_file}. `muster logs` prints what the functions logged.")
    elif now.phase == "down":
        stdout.print(f"The local stack is down (state directory: {stack.state_dir}). `muster up` starts it.")
    else:
        running = f", process {now.process.pid}, log {stack.log_file}" if now.process else ""
        stdout.print(f"The local stack is {now.phase} on {now.endpoint_url}{running}")
        stdout.print(f"Its state is in {stack.state_dir}")
        if now.outputs:
            stdout.print(f"Clients connect to {now.outputs.websocket_url}")
        elif now.phase == "ready":
            stdout.print("Another version of Muster started it. `muster up` updates it.")
    raise typer.Exit(0 if now.phase == "ready" else 1)


@command()
def build(
    runtime: Annotated[str, typer.Option(help="Lambda runtime of the layer.")] = bundle.RUNTIME,
    arch: Annotated[
        bundle.Architecture, typer.Option(help="Instruction set of the layer.")
    ] = bundle.ARCHITECTURE,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder to write to; Terraform's bundle_dir.")
    ] = Path("build"),
) -> None:
    """Build functions.zip, layer.zip and bundle.json for AWS. The build is reproducible."""
    with progress() as shown:
        shown.step("Building the Lambda bundle")
        made = bundle.build(out, runtime=runtime, architecture=arch)
    name, size = Column("file", overflow="fold"), Column("size", justify="right")
    table = Table(name, size, "sha256", box=None, pad_edge=False)
    for path in (made.functions, made.layer):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        table.add_row(str(path), f"{path.stat().st_size / 1e6:.1f} MB", digest[:16])
    stdout.print(table)
    stdout.print(f"Built for {runtime} on {arch}, as {made.manifest} says.")
    python = made.bytecode or runtime.removeprefix("python")
    if made.bytecode:
        note = f"The bundle contains bytecode of Python {python}."
    else:
        note = (
            f"The bundle contains no bytecode, so cold starts are slower: Python {python} is neither "
            "on the PATH nor in pyenv."
        )
    stdout.print(note)


@command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="ARGS...",
)
def terraform(context: typer.Context) -> NoReturn:
    """Run Terraform in terraform/, or in the folder that -chdir=DIR names.

    The AWS provider comes from the registry, or from a mirror on this disk.
    """
    with progress() as shown:
        program, arguments = for_command_line(context.args, shown)
    program.become(arguments)
