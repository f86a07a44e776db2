import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import telemetry
from functions.shared.telemetry import instrumented, logger, metrics
from tests.support.functions import Context
from tests.unit.functions.conftest import Logs

ROOT = Path(__file__).parents[4]
HANDLERS = sorted(path.stem for path in (ROOT / "functions").glob("*.py") if path.stem != "__init__")


def test_every_function_that_terraform_deploys_is_a_handler_module() -> None:
    text = (ROOT / "terraform" / "functions.tf").read_text()
    (block,) = re.findall(r"^  functions = \{\n(.*?)^  \}\n", text, re.MULTILINE | re.DOTALL)
    assert sorted(re.findall(r"^    (\w+) = \{", block, re.MULTILINE)) == HANDLERS


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_has_the_one_decorator(name: str) -> None:
    tree = ast.parse((ROOT / "functions" / f"{name}.py").read_text())
    (handler,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "handler"]
    assert [ast.unparse(decorator) for decorator in handler.decorator_list] == ["instrumented"]
    module: Any = importlib.import_module(f"functions.{name}")
    assert module.instrumented is telemetry.instrumented


def test_log_keys_of_an_event_do_not_reach_the_next_one(logs: Logs, context: Context) -> None:
    @instrumented
    def handler(event: dict[str, Any], context: LambdaContext) -> None:
        logger.append_keys(**event)
        logger.info("handled")
        metrics.add_metric("Handled", "Count", 1)

    handler({"userId": "u1"}, context)
    handler({}, context)
    first, second = (line for line in logs() if "message" in line)
    assert (first["userId"], first["function_request_id"]) == ("u1", "request-1")
    assert "userId" not in second


def test_metrics_are_written_even_when_a_handler_raises(logs: Logs, context: Context) -> None:
    @instrumented
    def handler(event: dict[str, Any], context: LambdaContext) -> None:
        metrics.add_metric("Tried", "Count", 1)
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        handler({}, context)
    (written,) = logs()
    assert written["Tried"] == [1.0]


TRACED = """
from aws_xray_sdk.core import xray_recorder
from functions.shared.telemetry import instrumented
from tests.support.functions import Context

class Emitter:
    def send_entity(self, entity):
        print(entity.serialize())

xray_recorder._emitter = Emitter()

@instrumented
def handler(event, context):
    if event["fails"]:
        raise ValueError("failed")
    return {"body": "a response"}

handler({"body": "an event", "fails": False}, Context())
try:
    handler({"body": "an event", "fails": True}, Context())
except ValueError:
    pass
"""


def test_a_trace_has_neither_events_nor_responses_nor_captured_errors() -> None:
    environment = {
        "AWS_LAMBDA_FUNCTION_NAME": "muster",
        "LAMBDA_TASK_ROOT": str(ROOT),
        "POWERTOOLS_METRICS_NAMESPACE": "Muster",
        "_X_AMZN_TRACE_ID": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
    }
    command = [sys.executable, "-W", "ignore", "-c", TRACED]
    output = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, timeout=30, capture_output=True, text=True
    ).stdout
    segments = [json.loads(line) for line in output.splitlines() if '"trace_id"' in line]
    assert [segment["name"] for segment in segments] == ["## handler", "## handler"]
    assert [segment.get("fault", False) for segment in segments] == [False, True]
    assert not any("metadata" in segment for segment in segments)
    assert not [text for text in ("an event", "a response") if text in output]
