"""`muster logs`: what the functions and the state machines wrote to CloudWatch Logs, locally and on AWS."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.text import Text

from muster.aws import error_code
from muster.cli.console import echo_json, stderr, stdout
from muster.cli.options import Command, OutputsOption, StateDirOption, resolve_outputs
from muster.errors import MusterError, OutputsError
from muster.local.stack import Stack
from muster.outputs import Outputs

app = typer.Typer()
command = partial(app.command, cls=Command, rich_help_panel="Deployment")

POLL_SECONDS = 2.0
"""Eight groups make four requests a second. FilterLogEvents allows at least five [CloudWatch Logs quotas]."""

FAILED_POLLS = 5
"""How many polls in a row may fail with --follow, after a first one that succeeded."""

_LATE_MS = 30_000
"""CloudWatch Logs may return an event some seconds later than events that are newer."""

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}
# What Lambda writes about each call. A REPORT with a status is about a timeout or a crash, and is shown.
_ROUTINE = ("START RequestId:", "END RequestId:", "INIT_START ", "XRAY TraceId:")
_DISCARDED = re.compile(r"Subsegment .* discarded due to Lambda worker still initializing")
# Fields whose value is the same in every line of one function.
_CONSTANT = {
    "cold_start",
    "function_arn",
    "function_memory_size",
    "function_name",
    "location",
    "sampling_rate",
    "service",
    "timestamp",
    "xray_trace_id",
}

Event = dict[str, Any]


def age(text: str) -> timedelta:
    """Parse a time span: `90s`, `10m`, `2h` or `1d`."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise typer.BadParameter("write a number and a unit, such as 90s, 10m, 2h or 1d.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@command()
def logs(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Functions and state machines, all by default: connect, fanout."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new events until Ctrl-C.")
    ] = False,
    since: Annotated[
        timedelta, typer.Option(parser=age, metavar="AGE", help="How far to look back: 90s, 10m, 2h, 1d.")
    ] = "10m",  # type: ignore[assignment]  # typer parses the default
    all_lines: Annotated[
        bool, typer.Option("--all", help="Also print metrics and notes of the X-Ray SDK.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as one line of JSON, unchanged.")
    ] = False,
    outputs: OutputsOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Print what functions and state machines logged: why a handshake was refused, where a function crashed.

    Times are UTC. On AWS it needs logs:FilterLogEvents on the log groups.
    """
    try:
        target = resolve_outputs(outputs, state_dir)
    except OutputsError:
        stack = Stack(state_dir)
        if outputs or as_json or stack.status().phase != "down" or not stack.function_logs():
            raise
        stderr.print(
            f"The local stack is down. These lines are from the files in {stack.state_dir / 'logs'}."
        )
        print_files(stack.function_logs(), names or [], all_lines=all_lines)
        return
    groups = choose(target.log_groups, names or [])
    began = int((datetime.now(UTC) - since).timestamp() * 1000)
    for event in read(target, groups, began, follow=follow):
        if as_json:
            echo_json(event)
        elif (all_lines or not is_noise(event)) and (line := describe(event)):
            stdout.print(line)


def print_files(files: list[Path], names: list[str], *, all_lines: bool) -> None:
    """Print the files with the output of the local stack's functions, of the named ones or of all."""
    for path in files:
        if names and not any(path.stem == name or path.stem.endswith(f"-{name}") for name in names):
            continue
        stdout.print(f"{path.stem}:")
        for line in path.read_text(errors="replace").splitlines():
            if all_lines or not is_noise({"message": line}):
                stdout.print(_printable(f"  {line}"))


def choose(groups: Mapping[str, str], names: list[str]) -> dict[str, str]:
    """Return the named log groups, or all of them when none is named."""
    if not groups:
        raise MusterError(
            "The outputs name no log groups.",
            fix="Apply this version's terraform/ and export its outputs again.",
        )
    if unknown := [name for name in names if name not in groups]:
        raise MusterError(
            f"There is no log group of {', '.join(unknown)}.",
            fix=f"Name one of these: {', '.join(sorted(groups))}.",
        )
    return {name: groups[name] for name in names or groups}


def read(outputs: Outputs, groups: Mapping[str, str], began: int, *, follow: bool) -> Iterator[Event]:
    """Yield the events since `began`, in milliseconds, each once and by time. With `follow` it does not end.

    An event is what FilterLogEvents returns, with the `name` of its function or state machine.
    """
    client = outputs.client("logs")
    seen: dict[tuple[str, str], int] = {}
    first, failures = True, 0
    while True:
        asked = int(time.time() * 1000)
        try:
            found = [event for name, group in groups.items() for event in _filter(client, name, group, began)]
            failures = 0
        except (MusterError, BotoCoreError, ClientError):
            failures += 1
            if not follow or first or failures > FAILED_POLLS:
                raise
            time.sleep(POLL_SECONDS)
            continue
        first = False
        for event in sorted(found, key=lambda event: event["timestamp"]):
            # The emulator gives no ids to lines that functions print.
            key = event["logStreamName"], event.get("eventId") or f"{event['timestamp']} {event['message']}"
            if key not in seen:
                seen[key] = event["timestamp"]
                yield event
        if not follow:
            return
        began = max(began, asked - _LATE_MS)
        seen = {key: timestamp for key, timestamp in seen.items() if timestamp >= began}
        time.sleep(POLL_SECONDS)


def is_noise(event: Event) -> bool:
    """Return whether an event is a metric in the embedded metric format, or a note of the X-Ray SDK."""
    text = event["message"].strip()
    if _DISCARDED.search(text) and "\n" not in text:
        return True
    with suppress(ValueError):
        entry = json.loads(text)
        return isinstance(entry, dict) and "_aws" in entry
    return False


def describe(event: Event) -> Text | None:
    """Return an event as a line: time, name, level, message, fields. None for Lambda's routine lines."""
    text = event["message"].rstrip("\n")
    if text.startswith(_ROUTINE) or (text.startswith("REPORT RequestId:") and "Status:" not in text):
        return None
    moment = datetime.fromtimestamp(event["timestamp"] / 1000, UTC).isoformat(timespec="milliseconds")
    level, message, fields = _parse(text)
    line = Text.assemble((f"{moment.removesuffix('+00:00')}Z ", "dim"), f"{event['name']:<10} ")
    line.append(f"{level:<8} ", _STYLES.get(level))
    line.append(_printable(message))
    for name, value in fields.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if "\n" in shown:  # a traceback
            line.append(_printable("\n" + shown.rstrip("\n")).replace("\n", "\n    "), "dim")
        else:
            line.append(_printable(f" {name}={shown}"), "dim")
    return line


def _parse(text: str) -> tuple[str, str, dict[str, Any]]:
    """Return level, message and fields of a line: of Powertools' Logger, Step Functions, or plain text."""
    try:
        entry = json.loads(text)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        return "", text, {}
    if "message" not in entry and "type" in entry:  # an event of an execution
        fields = {name: entry[name] for name in ("details", "execution_arn") if name in entry}
        level = "ERROR" if str(entry["type"]).endswith(("Failed", "TimedOut", "Aborted")) else ""
        return level, str(entry["type"]), fields
    message = entry.pop("message", "")
    level = str(entry.pop("level", ""))
    traceback = entry.pop("exception", None)
    fields = {name: value for name, value in entry.items() if name not in _CONSTANT and value is not None}
    if traceback is not None:
        fields["exception"] = traceback  # last, because it has several lines
    return level, message if isinstance(message, str) else json.dumps(message), fields


def _printable(text: str) -> str:
    """Escape control characters, because parts of a log come from clients."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _filter(client: Any, name: str, group: str, began: int) -> Iterator[Event]:
    try:
        for page in client.get_paginator("filter_log_events").paginate(logGroupName=group, startTime=began):
            yield from ({"name": name, **event} for event in page["events"])
    except ClientError as error:
        match error_code(error):
            case "ResourceNotFoundException":
                problem, fix = (
                    "does not exist",
                    "Check that --outputs belongs to this deployment, and apply it again.",
                )
            case "AccessDeniedException":
                problem, fix = "may not be read", f"Allow logs:FilterLogEvents on {group}."
            case "ThrottlingException":
                problem, fix = "is read too often", "Name the functions that you need, and try again."
            case _:
                raise
        raise MusterError(f"The log group {group} {problem}.", fix=fix) from error
