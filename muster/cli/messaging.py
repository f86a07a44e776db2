"""`muster token`, `listen`, `send` and `broadcast`: messages to and from a deployment, local or on AWS."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.table import Table
from rich.text import Text

from muster.broadcaster import Broadcaster, Execution, MessageType, Offline, Receipt
from muster.cli.console import echo_json, stderr, stdout
from muster.cli.options import (
    Command,
    JsonOption,
    OutputsOption,
    StateDirOption,
    resolve_outputs,
    seconds,
    url,
)
from muster.client import Client, Refused
from muster.errors import MusterError
from muster.faults import unserialisable
from muster.local.seed import SHELTERS, USERS
from muster.outputs import Outputs
from muster.people import unknown_in
from muster.tokens import DEFAULT_LIFETIME, TokenIssuer, issue_token

app = typer.Typer()
command = partial(app.command, cls=Command, rich_help_panel="Messages")

SENDER = {"service": "muster-cli"}

LONGEST_TTL = 2**31 - 1
"""68 years in seconds, so that the expiry is a date that every JWT library can read."""


class JsonObject(dict[str, Any]):
    """A JSON object given on the command line."""


def json_object(text: str) -> JsonObject:
    """Parse a JSON object: the text itself, a file (`@file`), or standard input (`-`)."""
    document: str | bytes = text
    try:
        if text == "-":
            document = sys.stdin.read()
        elif text.startswith("@"):
            document = Path(text[1:]).read_bytes()  # json detects the encoding by the first bytes
        value = json.loads(document)
    except OSError as error:
        raise typer.BadParameter(f"{text[1:]} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise typer.BadParameter(f"this is not JSON: {error}.") from error
    except RecursionError as error:
        raise typer.BadParameter("this JSON is nested too deeply: flatten it.") from error
    if not isinstance(value, dict):
        raise typer.BadParameter('this is JSON, but not an object: write {"name": value}.')
    if fault := unserialisable(value):
        raise typer.BadParameter(f"{fault}.")
    return JsonObject(value)


def parse_target(values: Sequence[str]) -> dict[str, Any]:
    """Turn `all`, `role:R`, `user:U` and `shelter:S` into a target; values of one kind are combined."""
    target: dict[str, Any] = {}
    for value in values:
        scope, _, name = value.partition(":")
        if value == "all":
            target["all"] = True
        elif scope in ("role", "user", "shelter") and name:
            names = target.setdefault(f"{scope}s", [])
            if name not in names:
                names.append(name)
        else:
            hint = "" if scope != value else _did_you_mean(value)
            raise typer.BadParameter(f"{value!r} is not one of all, role:R, user:U and shelter:S.{hint}")
    if "all" in target and len(target) > 1:
        raise typer.BadParameter("all includes everybody: name it alone.")
    return target


def _did_you_mean(name: str) -> str:
    """Return a question for a name without its kind, if the local stack's names resemble one."""
    kinds = {
        "role": {user.role for user in USERS},
        "user": {user.user_id for user in USERS},
        "shelter": {shelter.shelter_id for shelter in SHELTERS},
    }
    kind = next((kind for kind, names in kinds.items() if name in names), None)
    if kind is None and name.startswith("shelter"):
        kind = "shelter"
    return f" Did you mean {kind}:{name}?" if kind else ""


UserOption = Annotated[
    str | None,
    typer.Option(
        "--user",
        "-u",
        metavar="USER_ID",
        help="Connect as this user, with a token that is made for the user.",
        show_default=False,
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="JWT", help="Connect with this token. Default: MUSTER_TOKEN.", show_default=False
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        parser=url("ws", "wss"),
        help="The websocket_url to connect to.",
        show_default=False,
    ),
]
TargetOption = Annotated[
    list[str],
    typer.Option(
        "--to",
        metavar="TARGET",
        help="all, role:R, user:U or shelter:S. Repeat it to reach everyone who matches any of them.",
    ),
]
PayloadOption = Annotated[
    JsonObject | None,
    typer.Option(
        "--payload",
        metavar="JSON|@FILE|-",
        parser=json_object,
        help="What recipients get: a JSON object, a file with one, or standard input.",
        show_default=False,
    ),
]


@command()
def token(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="The user, such as admin-ada.")],
    ttl: Annotated[
        int, typer.Option(min=1, max=LONGEST_TTL, metavar="SECONDS", help="How long the token is valid.")
    ] = int(DEFAULT_LIFETIME.total_seconds()),
    outputs: OutputsOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Print a JWT for a user.

    Works for deployments that verify tokens with a secret, such as the local stack.
    """
    deployment = resolve_outputs(outputs, state_dir)
    typer.echo(issue_token(deployment, user_id, timedelta(seconds=ttl)))
    for warning in _warnings(deployment, {"users": [user_id]}, None) or ():
        stderr.print("Warning:", style="yellow", end=" ")
        stderr.print(warning)


@command()
def listen(
    user: UserOption = None,
    token: TokenOption = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="POSITION",
            help="Continue where an earlier listen stopped: the position that it printed at its end.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many messages.", show_default=False)
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", parser=seconds, help="Stop after this time.", show_default=False),
    ] = None,
    url: UrlOption = None,
    outputs: OutputsOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Print every message to a user as one line of JSON.

    Stays connected until Ctrl-C. When the connection is lost, it says so on stderr, reconnects and resumes.
    At its end it prints the position for --resume on stderr: the last id that a resume returned, not the last
    one printed. Exits with 1 when fewer than --count messages arrive within --timeout.
    """
    client = _client(user, token, url, outputs, state_dir, position=resume)
    narrator = logging.getLogger("muster.client")
    narrator.setLevel(logging.INFO)
    narrator.addHandler(logging.StreamHandler())
    try:
        printed = asyncio.run(_print_messages(client, count, timeout))
    except KeyboardInterrupt:
        raise typer.Exit(130 if count else 0) from None
    except BrokenPipeError:
        # The reader of the pipe has ended (`| head -1`). Python would report it again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    finally:
        if client.position:
            typer.echo(f"To continue from here: --resume {client.position}", err=True)
    if count and printed < count:
        raise MusterError(f"{printed} of {count} messages arrived within {timeout:g} s.")


@command()
def send(
    message: Annotated[
        JsonObject,
        typer.Argument(
            metavar="JSON|@FILE|-", parser=json_object, help='The client message, such as {"action": "ping"}.'
        ),
    ],
    user: UserOption = None,
    token: TokenOption = None,
    url: UrlOption = None,
    outputs: OutputsOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Send one client message and print the reply as JSON.

    Exits with 1 when the reply is an error.
    """

    async def exchange(client: Client) -> dict[str, Any]:
        async with client:
            return await client.send(message)

    try:
        reply = asyncio.run(exchange(_client(user, token, url, outputs, state_dir)))
    except Refused as refusal:
        echo_json(refusal.reply)
        raise typer.Exit(1) from None
    echo_json(reply)


@command()
def broadcast(
    to: TargetOption,
    text: Annotated[
        str | None,
        typer.Option(help="Short for --payload '{\"text\": TEXT}'.", metavar="TEXT", show_default=False),
    ] = None,
    payload: PayloadOption = None,
    type: Annotated[MessageType, typer.Option("--type", help="What kind of message it is.")] = "broadcast",
    shelter_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The shelter that a shelter_update is about.", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="ID",
            help="Makes a repetition safe: one id starts one broadcast.",
            show_default=False,
        ),
    ] = None,
    offline: Annotated[
        Offline,
        typer.Option(
            help="Publish to SNS for users who were not reached, for the whole target too, or never."
        ),
    ] = "fallback",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the receipt and show it.")] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", parser=seconds, help="How long to wait.")
    ] = 120.0,
    as_json: JsonOption = False,
    state_machine_arn: Annotated[
        str | None,
        typer.Option(metavar="ARN", help="The broadcast state machine to start.", show_default=False),
    ] = None,
    outputs: OutputsOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Start a broadcast, and wait until it is accepted; with --wait, wait for its receipt.

    Prints the execution's ARN, or with --wait the receipt. Warns of an unknown shelter or user, and of a role
    without active users. Exits with 1 when the broadcast is refused or fails.
    """
    if (type == "shelter_update") != (shelter_id is not None):
        raise typer.BadParameter(
            "--shelter-id is required for a shelter_update, and not allowed for other types."
        )
    if (text is None) == (payload is None):
        raise typer.BadParameter("say what to send: use either --text or --payload.")
    target = parse_target(to)
    deployment = None if state_machine_arn else resolve_outputs(outputs, state_dir)
    broadcaster = Broadcaster.from_outputs(deployment) if deployment else Broadcaster(str(state_machine_arn))
    execution = broadcaster.start(
        type,
        target,
        {"text": text} if payload is None else payload,
        offline=offline,
        shelter_id=shelter_id,
        sender=SENDER,
        name=name,
    )
    if execution.already_started:
        stderr.print(f"The broadcast {execution.name} was started before. Nothing new was sent.")
    receipt = _wait(broadcaster, execution, timeout) if wait else None
    if not wait:
        broadcaster.wait_accepted(execution, timeout)
    warnings = _warnings(deployment, target, shelter_id)
    for warning in warnings or ():
        stderr.print("Warning:", style="yellow", end=" ")
        stderr.print(warning)
    if as_json:
        described: dict[str, Any] = {"execution": execution.arn, "alreadyStarted": execution.already_started}
        if warnings is not None:
            described["warnings"] = warnings
        echo_json(described | ({"receipt": receipt.to_dict()} if receipt else {}))
    elif receipt:
        stdout.print(_receipt_table(receipt, execution))
        if not (receipt.audience or receipt.offline or receipt.notified):
            stderr.print(
                "Nobody in this target is connected. Offline users get the message when they reconnect. "
                "With --offline always it is published to the offline topic too."
            )
    else:
        typer.echo(execution.arn)


def _client(
    user: str | None,
    token: str | None,
    url: str | None,
    outputs_file: Path | None,
    state_dir: Path | None,
    *,
    position: str | None = None,
) -> Client:
    credential = token or ("" if user else os.environ.get("MUSTER_TOKEN", "").strip())
    if bool(user) == bool(credential):
        raise typer.BadParameter("say who connects: use either --user or --token, or set MUSTER_TOKEN.")
    if not user:
        address = url or resolve_outputs(outputs_file, state_dir).websocket_url
        return Client(address, credential, position=position)
    outputs = resolve_outputs(outputs_file, state_dir)
    issue = partial(TokenIssuer.from_outputs(outputs).issue, user)
    return Client(url or outputs.websocket_url, issue, position=position)


async def _print_messages(client: Client, count: int | None, timeout: float | None) -> int:
    printed = 0
    try:
        async with asyncio.timeout(timeout), client:
            async for message in client:
                echo_json(message)
                printed += 1
                if printed == count:
                    break
    except TimeoutError:
        pass
    return printed


def _wait(broadcaster: Broadcaster, execution: Execution, timeout: float) -> Receipt:
    with stderr.status(Text("Broadcasting...")) as status:
        return broadcaster.wait(
            execution, timeout, on_poll=lambda waited: status.update(Text(f"Broadcasting... {waited:.1f} s"))
        )


def _warnings(
    deployment: Outputs | None, target: Mapping[str, Any], shelter_id: str | None
) -> list[str] | None:
    """Return a sentence for each unknown name of a target; None if the caller may not read the tables."""
    if deployment is None:
        return None
    try:
        return unknown_in(deployment, target, shelter_id)
    except (BotoCoreError, ClientError):
        return None


def _receipt_table(receipt: Receipt, execution: Execution) -> Table:
    table = Table(title="Receipt", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows: Mapping[str, object] = {
        "message": f"{receipt.type} {receipt.id}",
        "connections": receipt.audience,
        "delivered": receipt.delivered,
        "gone": receipt.gone,
        "failed": receipt.failed,
        "users notified by SNS": receipt.offline,
        "notifications failed": receipt.offline_failed,
        "partitions": receipt.partitions,
        "unreached": ", ".join(part.value for part in receipt.unreached) or "none",
        "published for the whole target": "yes" if receipt.notified else "no",
        "retries": receipt.retries,
        "milliseconds": receipt.duration_ms,
        "execution": execution.name,
    }
    for label, value in rows.items():
        table.add_row(label, str(value))
    return table
