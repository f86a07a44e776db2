"""Options that several commands share, and the console they print to."""

from pathlib import Path
from typing import Annotated

import typer

from muster.errors import OutputsError
from muster.outputs import Outputs
from muster.stack import Stack

OutputsOption = Annotated[
    Path | None,
    typer.Option(
        "--outputs",
        envvar="MUSTER_OUTPUTS",
        metavar="FILE",
        help="Terraform outputs of the stack to use: a `terraform output -json` file, - for standard input, "
        "or a Terraform directory. Default: the local stack.",
        show_default=False,
    ),
]

StateDirOption = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        envvar="MUSTER_STATE_DIR",
        metavar="DIR",
        help="Where the local stack keeps its state. Default: .muster in the checkout.",
        show_default=False,
    ),
]


def resolve_outputs(outputs: Path | None, state_dir: Path | None = None) -> Outputs:
    """Return the outputs that `--outputs` names, else the running local stack's, else raise OutputsError."""
    if outputs is not None:
        return Outputs.read(outputs)
    local = Stack(state_dir).status().outputs
    if local is None:
        raise OutputsError(
            "There is no stack to talk to: the local one is not up and no outputs were given.",
            fix="Run `muster up`, or pass --outputs with what `terraform output -json` printed.",
        )
    return local
