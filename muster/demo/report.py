"""What the demo reports: figures, problems, and how the command line shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.json import JSON
from rich.table import Table
from rich.text import Text

from muster.listeners import Timing


@dataclass(frozen=True)
class Delivery:
    """The result of a step: `audience` clients should have received it, and `delivered` did.

    `timing` is from its start to its arrivals; None when it arrived nowhere.
    """

    via: str
    type: str
    scope: str
    audience: int
    delivered: int
    timing: Timing | None
    receipt: dict[str, Any]


@dataclass(frozen=True)
class Missed:
    """A message to an offline user: what SNS published to the SQS queue, and how the user resumed."""

    user_id: str
    message_id: str
    notification: dict[str, Any] | None
    resumed: bool
    resumed_after_ms: float


@dataclass(frozen=True)
class Limit:
    """A limit that the demo promises to keep, in milliseconds."""

    name: str
    measured_ms: float
    limit_ms: float

    @property
    def met(self) -> bool:
        """Whether the promise was kept."""
        return self.measured_ms < self.limit_ms


@dataclass(frozen=True)
class Report:
    """Everything that the demo measured. `problems` is empty on success."""

    clients: int
    users: int
    handshake: Timing
    deliveries: Sequence[Delivery]
    missed: Missed
    table_operations: Mapping[str, Timing]
    limits: Sequence[Limit]
    problems: Sequence[str]


def rendered(report: Report) -> Iterator[RenderableType]:
    """Yield the report for a terminal, in at most 80 columns."""
    yield Text(f"{report.clients} clients of {report.users} users", "bold")
    yield _deliveries(report.deliveries)
    yield _limits(report.limits)
    yield from _missed(report.missed)
    if not report.problems:
        yield Text("Every client received exactly the messages that were for it, once each.", "green")


def _deliveries(deliveries: Sequence[Delivery]) -> Table:
    table = _table("via", "type", "scope")
    for heading in ("audience", "delivered", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for delivery in deliveries:
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
    return table


def _limits(limits: Sequence[Limit]) -> Table:
    table = _table("slowest")
    table.add_column("ms", justify="right")
    table.add_column("limit ms", justify="right")
    table.add_column("")
    for limit in limits:
        verdict = Text("met", "green") if limit.met else Text("missed", "red")
        table.add_row(limit.name, f"{limit.measured_ms:.0f}", f"{limit.limit_ms:.0f}", verdict)
    return table


def _missed(missed: Missed) -> Iterator[RenderableType]:
    yield f"{missed.user_id} disconnected, and then an alert was sent to this user:"
    if missed.notification is not None:
        yield f"  SNS published it to the SQS queue, with the reason {missed.notification['reason']!r}:"
        yield JSON.from_data(missed.notification, indent=None)
    if missed.resumed:
        yield f"  A resume returned it, {missed.resumed_after_ms:.0f} ms after {missed.user_id} reconnected."


def _table(*headings: str) -> Table:
    return Table(*headings, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
