"""What a deployment costs a month: `python -m bench.cost --people 2000 --broadcasts 20 --hours 12`.

Prices are those of prices.json, a broadcast's cost is what bench.broadcast has measured (docs/delivery.md),
and the rest is counted from the code, as the constants say. `--write` brings docs/cost.md up to date, and a
test holds the page to that.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from functions.shared import messages

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "cost.md"
PRICES = json.loads(Path(__file__).with_name("prices.json").read_text())

DAYS = 30
GB = 1e9

# A client pings and resumes at each heartbeat and gets an answer to both (muster/client/, README.md).
MESSAGES_PER_HEARTBEAT, INVOCATIONS_PER_HEARTBEAT = 4, 2
# `touch` rewrites the row and its copy in UserIndex, the one index that projects lastSeenAt.
WRITES_PER_HEARTBEAT = 2 * 2
# `resume` reads up to four audiences, consistently, and none of them takes less than a unit.
READS_PER_HEARTBEAT = 4
# A client moves to a new connection five minutes before API Gateway's two hours.
MINUTES_PER_CONNECTION = 115
# The row is put and deleted, in the table and in its four indexes.
INVOCATIONS_PER_CONNECTION, WRITES_PER_CONNECTION, READS_PER_CONNECTION = 2, 2 * 5, 1
# Two updates of the ledger; a look for other connections and one for the profile.
WRITES_PER_OFFLINE, READS_PER_OFFLINE = 2, 1
# Sent by SNS, received and deleted by a consumer.
REQUESTS_PER_OFFLINE = 3

# Assumed, for AWS has not been measured: an invocation of connect, disconnect or default, at 512 MB;
# what it logs, Lambda's own lines included; a pong or an empty resume; a message as a client gets it; the
# part of an audience that is not reached.
GB_SECONDS = 0.05 * 0.5
LOG_BYTES = 700
REPLY_BYTES = 250
MESSAGE_BYTES = 600
OFFLINE_SHARE = 0.01
# Lambda traces the first request of each second and 5% of the others; the first are counted in the 5%.
TRACED = 0.05
# A row with its copies in the indexes.
ROW_BYTES = 5 * 250

# Held to the plan by tests/contract/test_monitoring.py.
METRICS, ALARM_METRICS = 19, 32


@dataclass(frozen=True)
class Use:
    """How a deployment is used; each broadcast is to everybody."""

    people: int
    broadcasts: float
    """A day."""
    hours: float = 24
    """A day that each of them is connected."""
    heartbeat: float = 300
    """Seconds."""

    @property
    def heartbeats(self) -> float:
        """Heartbeats a month, of everybody."""
        return self.people * self.hours * 3600 / self.heartbeat * DAYS

    @property
    def minutes(self) -> float:
        """Connection minutes a month, of everybody."""
        return self.people * self.hours * 60 * DAYS

    @property
    def connections(self) -> float:
        """Connections opened in a month."""
        return self.people * max(1, self.hours * 60 / MINUTES_PER_CONNECTION) * DAYS

    @property
    def reached(self) -> float:
        """Connections posted to in a month, by those broadcasts that find them open."""
        return self.people * self.hours / 24 * self.broadcasts * DAYS


def monthly(use: Use) -> dict[str, float]:
    """Dollars a month, by what they are paid for."""
    price = PRICES
    offline = use.reached * OFFLINE_SHARE
    invocations = use.heartbeats * INVOCATIONS_PER_HEARTBEAT + use.connections * INVOCATIONS_PER_CONNECTION
    writes = (
        use.heartbeats * WRITES_PER_HEARTBEAT
        + use.connections * WRITES_PER_CONNECTION
        + offline * WRITES_PER_OFFLINE
    )
    reads = (
        use.heartbeats * READS_PER_HEARTBEAT
        + use.connections * READS_PER_CONNECTION
        + offline * READS_PER_OFFLINE
    )
    stored = (use.people * ROW_BYTES + use.broadcasts * DAYS * 1024) / GB
    logs = invocations * LOG_BYTES / GB
    again = 1 + use.broadcasts * messages.RESUME_OVERLAP_SECONDS / 86_400
    replies = use.heartbeats * (2 * REPLY_BYTES + again * MESSAGE_BYTES)
    sent = (replies + use.reached * MESSAGE_BYTES) / GB
    audience = use.people * use.hours / 24
    return {
        "connection minutes": use.minutes * price["api_gateway_connection_minute"],
        "heartbeats: messages": use.heartbeats * MESSAGES_PER_HEARTBEAT * price["api_gateway_message"],
        "heartbeats and connects: Lambda": invocations
        * (price["lambda_request"] + GB_SECONDS * price["lambda_gb_second"]),
        "heartbeats and connects: DynamoDB": writes * price["dynamodb_write_unit"]
        + reads * price["dynamodb_read_unit"],
        "broadcasts: messages": use.reached * price["api_gateway_message"],
        "broadcasts: all the rest": use.broadcasts * DAYS * per_broadcast(audience)
        + offline * (price["sns_publish"] + REQUESTS_PER_OFFLINE * price["sqs_request"]),
        "logs": logs * (price["logs_ingested_gb"] + price["logs_gb_month"]),
        "traces": invocations * TRACED * price["trace"],
        "data sent": sent * price["data_out_gb"],
        "tables at rest, recovery included": stored
        * (price["dynamodb_gb_month"] + price["dynamodb_recovery_gb_month"]),
        "metrics, alarms, dashboard": METRICS * price["metric_month"]
        + ALARM_METRICS * price["alarm_metric_month"]
        + price["dashboard_month"],
        "secret, and a key of your own": price["secret_month"] + price["kms_key_month"],
    }


def measured() -> list[tuple[int, float]]:
    """Audience and dollars of a broadcast beside API Gateway's, smallest first, from docs/delivery.md."""
    section = (DOCS / "delivery.md").read_text().split("## What a broadcast costs")[1].split("\n## ")[0]
    ours = section.split("| **muster** |")[1].split("\n| scan")[0]
    rows = re.findall(r"(?:^|\n\| \|) ([\d,]+) \|.*\| \**([\d.]+)\** \|(?=\n|$)", ours)
    audiences = [(int(audience.replace(",", "")), float(dollars)) for audience, dollars in rows]
    return [(audience, dollars * audience / 1e6) for audience, dollars in audiences]


def per_broadcast(audience: float) -> float:
    """Dollars beside API Gateway's, on the line through the smallest and the largest audience measured."""
    (small, low), *_, (large, high) = measured()
    return low + (high - low) * (audience - small) / (large - small)


def table(uses: Sequence[Use]) -> str:
    """A Markdown table of what each costs."""
    bills = [monthly(use) for use in uses]
    head = [f"{use.people:,} people" for use in uses]
    rows = [["dollars a month", *head], ["---", *["---:"] * len(uses)]]
    rows += [[name, *(_dollars(bill[name]) for bill in bills)] for name in bills[0]]
    rows += [["**together**", *(f"**{_dollars(sum(bill.values()))}**" for bill in bills)]]
    rows += [
        [
            "a person",
            *(f"{sum(bill.values()) / use.people:.3f}" for use, bill in zip(uses, bills, strict=True)),
        ]
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _dollars(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:,.2f}"


TABLES: dict[str, Sequence[Use]] = {
    "always": [Use(people, 10) for people in (500, 5_000, 50_000)],
    "seldom": [Use(people, 10, hours=2, heartbeat=540) for people in (500, 5_000, 50_000)],
    "busy": [Use(people, 200) for people in (500, 5_000, 50_000)],
}
"""The tables of docs/cost.md, by their markers."""


def generated(text: str) -> str:
    """The page with its tables written anew."""
    for name, uses in TABLES.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
        before, rest = text.split(begin)
        text = before + begin + table(uses) + end + rest.split(end)[1]
    return text


def main() -> None:
    """Print what a use costs, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=__doc__)
    parser.add_argument("--people", type=int, default=5_000)
    parser.add_argument("--broadcasts", type=float, default=10, help="a day, each to everybody")
    parser.add_argument("--hours", type=float, default=24, help="a day that each of them is connected")
    parser.add_argument("--heartbeat", type=float, default=300, help="seconds, below 600")
    parser.add_argument("--write", action="store_true", help="write docs/cost.md instead")
    options = parser.parse_args()
    if options.people < 1 or options.broadcasts < 0:
        parser.error("--people must be at least 1, and --broadcasts at least 0")
    if not (0 < options.hours <= 24 and 0 < options.heartbeat < 600):
        parser.error("--hours must be up to 24, and --heartbeat below 600, when API Gateway closes")
    if options.write:
        PAGE.write_text(generated(PAGE.read_text()))
    else:
        print(table([Use(options.people, options.broadcasts, options.hours, options.heartbeat)]), end="")


if __name__ == "__main__":
    main()
