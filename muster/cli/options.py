"""What the commands share: options, and checks of arguments."""

from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from typer.core import TyperCommand

from muster.outputs import Outputs


class Command(TyperCommand):
    """A command that refuses empty arguments, which come from variables that a script failed to set."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check the arguments before they are parsed, except those of `muster terraform`."""
        before = ""
        if self.ignore_unknown_options:  # they are Terraform's
            return super().parse_args(ctx, args)
        for argument in args:
            option, equals, value = argument.partition("=")
            if equals and option.startswith("--") and not value.strip():
                ctx.fail(f"{option} is empty: give it a value, or leave it out.")
            if not argument.strip():
                name = f"The value of {before}" if before.startswith("-") else "An argument"
                ctx.fail(f"{name} is empty: give a value, or leave it out.")
            before = argument
        return super().parse_args(ctx, args)


def url(*schemes: str) -> Callable[[str], str]:
    """Return a parser of URLs. Its errors never quote the URL, which may contain a password."""

    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            host = (parts.hostname or "").encode("idna")
            usable = parts.scheme in schemes and host and parts.port != 0 and parts.username is None
        except ValueError:  # a bad port, bad brackets of IPv6, or an impossible host name
            usable = False
        if not usable:
            raise typer.BadParameter(
                f"write {schemes[-1]}://HOST or {schemes[-1]}://HOST:PORT, with a port from 1 to 65535 "
                "and without user and password."
            )
        return text

    return parse


def seconds(text: str) -> float:
    """Parse a finite number of seconds, 0 or more."""
    with suppress(ValueError):
        value = float(text)
        if isfinite(value) and value >= 0:
            return value
    raise typer.BadParameter("write a number of seconds, 0 or more.")


OutputsOption = Annotated[
    Path | None,
    typer.Option(
        "--outputs",
        envvar="MUSTER_OUTPUTS",
        metavar="FILE",
        help="Outputs of the deployment to use: a file from `terraform output -json` or "
        "`muster outputs --json`, - for standard input, or a Terraform directory. Default: the local stack.",
        show_default=False,
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]

StateDirOption = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        envvar="MUSTER_STATE_DIR",
        metavar="DIR",
        file_okay=False,
        help="Where the local stack keeps its state. Default: .muster in the checkout; "
        "for an installed package, in the working directory.",
        show_default=False,
    ),
]


def resolve_outputs(outputs: Path | None, state_dir: Path | None = None) -> Outputs:
    """Return the outputs that `--outputs` names, or those of the running local stack. Raises OutputsError."""
    return Outputs.find(outputs, state_dir=state_dir)
