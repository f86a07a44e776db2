"""The `muster` command. Each module of this package has one group of commands."""

import sys
from importlib.metadata import version
from typing import Annotated, cast

import typer
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from muster.cli import demo, deployment, logs, messaging, stack, verify
from muster.cli.failures import describe_os_error, exit_with, refuse_usage
from muster.cli.interrupts import catch_signals, raise_keyboard_interrupt
from muster.errors import MusterError

# Typer exports BadParameter only, not its base class, of which an unknown command or option is one.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

app = typer.Typer(
    name="muster",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for module in (stack, deployment, logs, messaging, demo, verify):
    app.add_typer(module.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"muster {version('muster')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Real-time broadcasts to WebSocket clients, on AWS and on this machine."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run the command line. A foreseen error becomes a sentence and a fix on stderr, never a stack trace."""
    catch_signals(raise_keyboard_interrupt, ("SIGTERM", "SIGHUP"))  # Python does it for SIGINT
    try:
        sys.exit(app(standalone_mode=False))
    except typer.Abort:
        sys.exit(1)
    except _UsageError as error:
        refuse_usage(error)
    except MusterError as error:
        exit_with(error.exit_code, error.message, error.fix)
    except EndpointConnectionError as error:
        exit_with(1, f"AWS: {error}", "Check that the stack of these outputs is up, and the network.")
    except (BotoCoreError, ClientError) as error:
        exit_with(1, f"AWS: {error}", "Check the credentials, the region, and that the deployment is up.")
    except OSError as error:
        problem, fix, exit_code = describe_os_error(error)
        exit_with(exit_code, problem, fix)
