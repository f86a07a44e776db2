"""`muster outputs`, `env` and `users`: the outputs and the users of a deployment."""

import dataclasses
import shlex
from functools import partial
from itertools import islice
from typing import Annotated

import typer
from rich.table import Table

from muster.cli.console import echo_json, stderr, stdout
from muster.cli.options import Command, JsonOption, OutputsOption, StateDirOption, resolve_outputs
from muster.local import repository
from muster.people import people

app = typer.Typer()
command = partial(app.command, cls=Command, rich_help_panel="Deployment")


@command()
def outputs(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print the value of this output only.")
    ] = None,
    outputs: OutputsOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the outputs of a deployment.

    The option --outputs of every command accepts what --json prints.
    """
    values = resolve_outputs(outputs, state_dir).to_dict()
    if name is not None:
        if name not in values:
            raise typer.BadParameter(f"There is no output {name!r}. The outputs are {', '.join(values)}.")
        value = values[name]
        if isinstance(value, str) and not as_json:
            typer.echo(value)
        else:
            echo_json(value)
        return
    if as_json:
        echo_json(values, indent=2)
        return
    for key, value in values.items():
        if isinstance(value, str):
            typer.echo(f"{key} = {value}")


@command()
def env(outputs: OutputsOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """Print shell commands that point any AWS SDK to a deployment: eval "$(muster env)".

    Each output becomes a variable, such as MUSTER_WEBSOCKET_URL. The local stack adds its endpoint, test
    keys, and MUSTER_STATE_DIR, with which `muster` and `Broadcaster.from_outputs()` find it from any folder.
    A deployment on AWS adds its region, and your own credentials apply. In --json, null means unset.
    """
    found = resolve_outputs(outputs, state_dir)
    variables = found.environment()
    if outputs is None:  # so that `muster` and `Broadcaster.from_outputs()` find the stack from any folder
        variables["MUSTER_STATE_DIR"] = str((state_dir or repository.default_state_dir()).absolute())
    if as_json:
        echo_json(variables, indent=2)
        return
    for name, value in variables.items():
        typer.echo(f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")


@command()
def users(
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many.")] = 100,
    outputs: OutputsOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the users of a deployment, and whether they are active and connected."""
    found = list(islice(people(resolve_outputs(outputs, state_dir)), limit + 1))
    shown = sorted(found[:limit], key=lambda person: person.id)
    if as_json:
        echo_json([dataclasses.asdict(person) for person in shown], indent=2)
    else:
        table = Table("id", "role", "shelter", "active", "connected", box=None, pad_edge=False)
        for person in shown:
            active = "yes" if person.active else "no"
            connected = "yes" if person.connected else "no"
            table.add_row(person.id, person.role or "-", person.shelter or "-", active, connected)
        stdout.print(table)
    if len(found) > limit:
        stderr.print(f"There are more than {limit} users: see --limit.")
