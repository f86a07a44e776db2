"""`muster verify`: checks that a deployment keeps Muster's promises, without reaching anybody."""

import json
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from muster.cli.console import echo_json, progress, stderr, stdout
from muster.cli.interrupts import Interrupts
from muster.cli.options import Command, OutputsOption, StateDirOption, resolve_outputs
from muster.errors import MusterError
from muster.outputs import Outputs
from muster.verify import (
    FEWEST_CLIENTS,
    Consent,
    Report,
    Row,
    chosen,
    limits,
    live_connections,
    shared_users_table,
    tokens_for,
)
from muster.verify import verify as run_checks
from muster.verify.account import role_to_test
from muster.verify.plan import policy, steps

app = typer.Typer()
command = partial(app.command, cls=Command, rich_help_panel="Demo")

EXIT_CODES = {"held": 0, "failed": 1, "unknown": 3}

# What the table shows for each result, and its colour.
_WORDS = {"held": ("held", "green"), "failed": ("failed", "red"), "unknown": ("cannot tell", "yellow")}


def parse_scopes(text: str) -> frozenset[str]:
    """Parse `all`, `role` or both, separated by a comma."""
    scopes = frozenset(part.strip() for part in text.split(","))
    if not scopes <= {"all", "role"}:
        raise typer.BadParameter("write all, role, or all,role.")
    return scopes


@command()
def verify(
    clients: Annotated[
        int, typer.Option(min=FEWEST_CLIENTS, max=500, help="How many WebSocket clients connect.")
    ] = 20,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="CHECK",
            help="Run only this check, and those that it needs. Repeat it for several.",
        ),
    ] = None,
    scopes: Annotated[
        str | None,
        typer.Option(
            metavar="all,role",
            help="Also broadcast a test to everybody who is connected, to a role, or both, once confirmed.",
            show_default=False,
        ),
    ] = None,
    notify_subscribers: Annotated[
        bool,
        typer.Option(
            "--notify-subscribers",
            help="Run the check fallback although other subscriptions of the offline topic get its 3 to "
            f"{limits.WARM_UPS + 2} notifications about users of the run.",
        ),
    ] = False,
    write_users: Annotated[
        bool,
        typer.Option(
            "--write-users",
            help="Write the run's users without asking into a users table that other systems may read: your "
            "own, or one with a stream.",
        ),
    ] = False,
    slow: Annotated[
        bool, typer.Option("--slow", help="Also run the check idle, which takes ten minutes.")
    ] = False,
    token_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="A command that prints a token for the user in MUSTER_USER_ID: for deployments with JWKS.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the steps and the permissions. Call nothing."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    outputs: OutputsOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Check that a deployment keeps its promises, with users of its own, and remove everything that was made.

    By default nobody else gets a message. Exits with 0 when every check held, with 1 when one failed, and
    with 3 when none failed and one cannot tell, such as about quotas on the local stack.
    """
    found = resolve_outputs(outputs, state_dir)
    consent = Consent(parse_scopes(scopes) if scopes else frozenset(), notify_subscribers, slow, write_users)
    checks = chosen(only or (), consent)
    if dry_run:
        _print_plan(steps(found, clients, consent, checks), policy(found, consent), as_json)
        return
    consent = _confirm_users(found, consent, as_json)
    if consent.scopes:
        _confirm(found, consent)
    tokens = tokens_for(found, token_command)
    with Interrupts("removing what the run made") as interrupts, progress() as shown:
        report = interrupts.run(
            run_checks(found, tokens, clients=clients, consent=consent, only=only or (), progress=shown)
        )
    if as_json:
        echo_json(asdict(report) | {"result": report.result}, indent=2)
    else:
        _print(report)
    raise typer.Exit(EXIT_CODES[report.result])


def _confirm_users(outputs: Outputs, consent: Consent, as_json: bool) -> Consent:
    """Before users are written where other systems may read them, ask for the name of the table."""
    shared = None if consent.users else shared_users_table(outputs)
    if shared is None:
        return consent
    problem = f"{shared}: other systems may read the users of the run and act on them."
    fix = "Add --write-users if these systems may read test users with addresses in example.org."
    if as_json:
        raise MusterError(problem, fix=fix)
    stderr.print(problem)
    answer = typer.prompt(
        f"Type {outputs.users_table} to write them", err=True, default="", show_default=False
    )
    if answer.strip() != outputs.users_table:
        raise MusterError("Nothing was written, because the table was not confirmed.", fix=fix)
    return replace(consent, users=True)


def _confirm(outputs: Outputs, consent: Consent) -> None:
    """Show how many real connections would get the test, and ask for that number."""
    counts = live_connections(outputs)
    reached = {}
    if "all" in consent.scopes:
        reached["everybody"] = counts["all"]
    if "role" in consent.scopes:
        role = role_to_test(outputs)
        reached[f"the role {role}"] = counts.get(role, 0)
    for name, count in reached.items():
        stderr.print(f"A test message would reach {count} live connections of {name}.")
    number = str(max(reached.values()))
    answer = typer.prompt(f"Type {number} to send it", err=True, default="", show_default=False)
    if answer.strip() != number:
        raise MusterError(
            "Nothing was sent, because the number was not confirmed.", fix="Leave --scopes out."
        )


def _print_plan(done: list[str], allowed: dict[str, object], as_json: bool) -> None:
    if as_json:
        echo_json({"steps": done, "policy": allowed}, indent=2)
        return
    for step in done:
        stdout.print(f"- {step}")
    stdout.print("\nThe permissions that this needs:")
    typer.echo(json.dumps(allowed, indent=2))


def _print(report: Report) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("result", "check", "what was seen"):
        table.add_column(heading, overflow="fold")
    for row in report.rows:
        word, style = _WORDS[row.result]
        table.add_row(Text(word, style), row.name, _seen(row))
    stdout.print(table)
    for name in report.left:
        stdout.print(f"Not removed: {name}. A run in an hour or later tries again.", style="red")
    counts = {result: sum(row.result == result for row in report.rows) for result in EXIT_CODES}
    stdout.print(
        f"{counts['held']} held, {counts['failed']} failed, {counts['unknown']} cannot tell.", style="bold"
    )


def _seen(row: Row) -> str:
    lines = [row.detail]
    if row.result == "failed":
        lines.insert(0, row.promise)
    if row.fix:
        lines.append(f"Fix: {row.fix}")
    return "\n".join(lines)
