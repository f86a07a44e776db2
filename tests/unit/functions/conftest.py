import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from functions.shared.posting import batch
from functions.shared.telemetry import logger, metrics
from tests.support.fake_aws import DynamoDB, Sns, StepFunctions
from tests.support.functions import Context
from tests.support.jwks import Jwks

Logs = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def dynamodb() -> DynamoDB:
    return DynamoDB()


@pytest.fixture
def stepfunctions() -> StepFunctions:
    return StepFunctions()


@pytest.fixture
def sns() -> Sns:
    return Sns()


@pytest.fixture
def jwks() -> Iterator[Jwks]:
    with Jwks.serving() as server:
        yield server


@pytest.fixture
def context() -> Context:
    return Context()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the gateway's pauses between attempts to a thousandth."""
    for pause in ("FIRST_BACKOFF_SECONDS", "LONGEST_BACKOFF_SECONDS", "GONE_AGAIN_SECONDS"):
        monkeypatch.setattr(batch, pause, getattr(batch, pause) / 1000)


@pytest.fixture
def logs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Logs:
    """Return what the functions have written since the last call, parsed: log lines, then metrics."""
    lines = io.StringIO()
    monkeypatch.setattr(logger.registered_handler, "stream", lines)
    monkeypatch.setattr(metrics.provider, "namespace", "Muster")

    def read() -> list[dict[str, Any]]:
        text = lines.getvalue() + capsys.readouterr().out
        lines.seek(lines.truncate(0))
        return [json.loads(line) for line in text.splitlines()]

    return read
