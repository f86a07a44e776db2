"""Every metric and field that the planned dashboard, alarms and saved queries name exists.

AWS accepts a metric with the wrong dimension and a field with the wrong name: the graph stays empty and the
alarm never fires.
"""

import ast
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jwt
import pytest
from botocore.exceptions import NoCredentialsError

from bench import cost
from functions import accept, connect, default, deliver, disconnect, offline
from functions.shared.errors import InvalidMessage, TokenRefused
from functions.shared.keys import KEY_LIFETIME_SECONDS
from functions.shared.notifications import Counts
from functions.shared.posting.gateway import Posted, Recipient
from functions.shared.settings import Jwt
from functions.shared.telemetry import logger, metrics
from functions.shared.tokens import Verifier
from muster.local import repository
from tests.contract.test_asl import EVERY

pytestmark = pytest.mark.slow  # plans with Terraform

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]
Metric = tuple[str, str, tuple[str, ...]]
"""Namespace, name, and the names of the dimensions."""

AWS: dict[str, tuple[str, dict[tuple[str, ...], set[str]]]] = {
    "AWS/ApiGateway": (
        "https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-logging.html",
        {
            ("ApiId", "Stage"): {
                "ConnectCount",
                "MessageCount",
                "ClientError",
                "IntegrationError",
                "ExecutionError",
                "IntegrationLatency",
            }
        },
    ),
    "AWS/DynamoDB": (
        "https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/metrics-dimensions.html",
        {
            ("TableName",): {"ReadThrottleEvents", "WriteThrottleEvents"},
            ("GlobalSecondaryIndexName", "TableName"): {"ReadThrottleEvents", "WriteThrottleEvents"},
        },
    ),
    "AWS/Lambda": (
        "https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html",
        {("FunctionName",): {"Errors", "Throttles", "Duration"}},
    ),
    "AWS/SNS": (
        "https://docs.aws.amazon.com/sns/latest/dg/sns-monitoring-using-cloudwatch.html",
        {
            ("TopicName",): {
                "NumberOfMessagesPublished",
                "NumberOfNotificationsDelivered",
                "NumberOfNotificationsFailed",
            }
        },
    ),
    "AWS/SQS": (
        "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html",
        {("QueueName",): {"ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"}},
    ),
    "AWS/States": (
        "https://docs.aws.amazon.com/step-functions/latest/dg/procedure-cw-metrics.html",
        {
            ("StateMachineArn",): {
                "ExecutionsStarted",
                "ExecutionsSucceeded",
                "ExecutionsFailed",
                "ExecutionsTimedOut",
                "ExecutionThrottled",
                "ExecutionTime",
            }
        },
    ),
}
"""The metrics of AWS by namespace: the source, and the names under each set of dimensions."""


# ---- what is asked for


@pytest.fixture(scope="module")
def planned() -> dict[str, list[Json]]:
    """Return the planned resources of terraform/tests/monitoring.tftest.hcl, by run."""
    environment = {"TF_DATA_DIR": str(repository.cache_dir() / "terraform-check"), **os.environ}
    muster = [sys.executable, "-m", "muster", "terraform"]
    for arguments in (
        ["init", "-backend=false", "-input=false"],
        ["test", "-json", "-verbose", "-filter=tests/monitoring.tftest.hcl"],
    ):
        run = subprocess.run([*muster, *arguments], env=environment, capture_output=True, text=True)
        faults = [line for line in run.stdout.splitlines() if '"diagnostic"' in line]
        assert run.returncode == 0, "\n".join([*faults, run.stderr])
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return {
        line["@testrun"]: line["test_plan"]["resource_changes"]
        for line in lines
        if line["type"] == "test_plan"
    }


def of_type(resources: list[Json], kind: str) -> Iterator[Json]:
    """Yield the planned attributes of the resources of a type."""
    for resource in resources:
        if resource["type"] == kind:
            yield resource["change"]["after"]


@pytest.fixture(scope="module")
def alarms(planned: dict[str, list[Json]]) -> list[Json]:
    return list(of_type(planned["aws"], "aws_cloudwatch_metric_alarm"))


@pytest.fixture(scope="module")
def graphs(planned: dict[str, list[Json]]) -> list[Json]:
    (dashboard,) = of_type(planned["dashboard"], "aws_cloudwatch_dashboard")
    widgets = json.loads(dashboard["dashboard_body"])["widgets"]
    return [widget["properties"] for widget in widgets if widget["type"] == "metric"]


def of_alarm(alarm: Json) -> Iterator[Json]:
    """Yield the metrics of an alarm: its own, or those in its expression."""
    if alarm["metric_name"]:
        yield alarm
    for query in alarm["metric_query"] or ():
        yield from query["metric"]


def named(alarms: list[Json], graphs: list[Json]) -> set[Metric]:
    """Return every metric that an alarm or a graph names."""
    found = {
        (metric["namespace"], metric["metric_name"], tuple(sorted(metric["dimensions"])))
        for alarm in alarms
        for metric in of_alarm(alarm)
    }
    for graph in graphs:
        for namespace, name, *dimensions, _ in graph["metrics"]:
            found.add((namespace, name, tuple(sorted(dimensions[::2]))))
    return found


# ---- what there is


@pytest.fixture(scope="module")
def lines() -> list[Json]:
    """Return what the functions write when each counted event happens once."""
    written = io.StringIO()
    context = SimpleNamespace(
        function_name="f",
        memory_limit_in_mb=128,
        invoked_function_arn="arn:f",
        aws_request_id="r",
        get_remaining_time_in_millis=lambda: 10_000,
    )

    def frame(kind: str, **fields: Any) -> Json:
        return {"requestContext": {"connectionId": "c", "eventType": kind}, **fields}

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(written):
        patch.setattr(logger.registered_handler, "stream", written)
        patch.setattr(metrics.provider, "namespace", "Muster")
        for module in (connect, default, offline):
            patch.setattr(module, "dependencies", Mock())
        patch.setattr(deliver, "gateway", Mock())

        admit = Mock(side_effect=[{}, TokenRefused("expired"), RuntimeError("the table is away")])
        with pytest.MonkeyPatch.context() as admitting:
            admitting.setattr(connect, "admit", admit)
            for _ in range(3):
                connect.handler(frame("CONNECT"), context)
        # Its keys have been read once, and cannot be read again.
        now, key = [0.0], "k" * 32
        secrets = Mock(get_secret_value=Mock(side_effect=[{"SecretString": key}, NoCredentialsError()]))
        config = Jwt(jwt_algorithms=("HS256",), jwt_issuer="i", jwt_audience="a", jwt_secret_arn="arn:s")
        verifier = Verifier(config, secrets, lambda: now[0])
        token = jwt.encode({}, key)
        using = Mock(verifier=verifier, settings=Mock(allowed_origins=()))
        patch.setattr(connect, "dependencies", lambda: using)
        for now[0] in (0.0, KEY_LIFETIME_SECONDS):
            connect.handler(frame("CONNECT", headers={"Authorization": token}), context)
        patch.setattr(disconnect, "connections", Mock())
        disconnect.handler(frame("DISCONNECT"), context)
        away = Mock(side_effect=RuntimeError("the table is away"))
        patch.setattr(default, "dependencies", lambda: Mock(connections=Mock(touch=away)))
        default.handler(frame("MESSAGE", body="no JSON"), context)
        default.handler(frame("MESSAGE", body='{"action": "ping"}'), context)

        accepted = {"messageId": "m", "type": "alert", "audiences": ["all"]}
        patch.setattr(accept, "config", Mock())
        patch.setattr(accept, "accept", Mock(side_effect=[accepted, InvalidMessage()]))
        execution = {"id": "e", "startTime": "2026-01-01T00:00:00.000Z"}
        for _ in range(2):
            accept.handler({"request": {}, "execution": execution}, context)
        posted = Posted([(Recipient("c", "u", 0.0), "delivered")], retries=0, throttled=0)
        patch.setattr(deliver, "deliver", Mock(return_value=posted))
        deliver.handler({"messageId": "m"}, context)
        patch.setattr(offline, "notify", Mock(return_value=Counts(1, 0)))
        offline.handler({"messageId": "m"}, context)
    return [json.loads(line) for line in written.getvalue().splitlines()]


@pytest.fixture(scope="module")
def emitted(lines: list[Json]) -> set[Metric]:
    """Return the metrics of the functions, from their embedded metric format, and of the state machines."""
    found: set[Metric] = set()
    for line in lines:
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", ()):
            for dimensions in directive["Dimensions"]:
                assert {line[name] for name in dimensions} == {metrics.provider.service}
                for metric in directive["Metrics"]:
                    found.add((directive["Namespace"], metric["Name"], tuple(sorted(dimensions))))
    for _, _, state in EVERY:
        if str(state.get("Resource")).endswith(":putMetricData"):
            for metric in state["Arguments"]["MetricData"]:
                dimensions = tuple(dimension["Name"] for dimension in metric["Dimensions"])
                found.add((state["Arguments"]["Namespace"], metric["MetricName"], dimensions))
    return found


# ---- the tests


def test_every_metric_exists_under_exactly_these_dimensions(
    alarms: list[Json], graphs: list[Json], emitted: set[Metric]
) -> None:
    published = {
        (namespace, name, dimensions)
        for namespace, (_, families) in AWS.items()
        for dimensions, names in families.items()
        for name in names
    }
    assert named(alarms, graphs) - published - emitted == set()
    assert published - named(alarms, graphs) == set()  # or the list above would grow stale


def test_every_metric_of_muster_is_on_the_dashboard(graphs: list[Json], emitted: set[Metric]) -> None:
    assert {metric for metric in named([], graphs) if metric[0] == "Muster"} == emitted


def test_the_cost_page_counts_every_metric_and_alarm(alarms: list[Json], emitted: set[Metric]) -> None:
    """docs/cost.md has their prices. AWS charges an alarm for each of its metrics."""
    assert len(emitted) == cost.METRICS
    assert sum(len(list(of_alarm(alarm))) for alarm in alarms) == cost.ALARM_METRICS


def test_no_metric_belongs_to_another_deployment(alarms: list[Json], graphs: list[Json]) -> None:
    """The run's name_prefix is north; the API has its own id."""
    values = [list(metric["dimensions"].values()) for alarm in alarms for metric in of_alarm(alarm)]
    values += [dimensions[1::2] for graph in graphs for _, _, *dimensions, _ in graph["metrics"]]
    assert [row for row in values if not re.search(r"\bnorth\b|^a1b2c3d4e5$", row[0])] == []


def test_every_alarm_has_its_section_in_the_runbook_and_every_section_its_alarm(alarms: list[Json]) -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    part = runbook.split("\n## When an alarm goes off\n")[1].split("\n## ")[0]
    sections = set(re.findall(r"^### (\S+)$", part, re.MULTILINE))
    linked = {re.search(r"See docs/operations\.md#(\S+)$", alarm["alarm_description"]) for alarm in alarms}
    assert {link[1] for link in linked if link} == sections
    assert None not in linked


def test_every_field_of_a_query_is_one_that_the_functions_log(
    planned: dict[str, list[Json]], lines: list[Json]
) -> None:
    logged = {name for line in lines if "_aws" not in line for name in line}
    messages = {line.get("message") for line in lines}
    queries = list(of_type(planned["aws"], "aws_cloudwatch_query_definition"))
    assert queries
    for query in queries:
        text = query["query_string"]
        for message in re.findall(r'message = "([^"]+)"', text):
            assert message in messages
        # What remains beside text, patterns, functions, numbers and the language's own words are fields.
        bare = re.sub(r'"[^"]*"|/[^/]+/|as \w+|\w+\([^)]*\)', " ", text)
        words = set(re.findall(r"@?[A-Za-z_]\w*", bare)) - {"refusals", "time"}
        language = {"fields", "filter", "sort", "stats", "limit", "by", "asc", "desc", "in", "or", "like"}
        assert words - language - {"@timestamp", "@message"} - logged == set(), query["name"]


def test_every_command_of_the_runbook_is_shell_and_asks_for_outputs_that_exist() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", runbook, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 20
    for block in blocks:
        read = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert read.returncode == 0, f"{block}\n{read.stderr}"
    outputs = set(
        re.findall(r'^output "(\w+)"', (ROOT / "terraform" / "outputs.tf").read_text(), re.MULTILINE)
    )
    assert set(re.findall(r"\$\(output (\w+)\)", runbook)) - outputs == set()


def test_every_link_within_the_runbook_has_a_heading() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    headings = {
        heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", runbook, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", runbook)) - headings == set()


def test_only_telemetry_traces() -> None:
    """The X-Ray SDK is in maintenance, so replacing it (docs/decisions.md) must change only one file."""
    found: dict[str, set[str]] = {}
    for part in ("functions", "muster", "bench"):
        for path in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names = {f"{node.module}.{alias.name}" for alias in node.names}
                else:
                    continue
                tracing = {name for name in names if re.search(r"xray|powertools.*trac", name, re.IGNORECASE)}
                if tracing:
                    found.setdefault(path.relative_to(ROOT).as_posix(), set()).update(tracing)
    assert found == {"functions/shared/telemetry.py": {"aws_lambda_powertools.Tracer"}}
