"""Logs, metrics and traces, configured once for all functions so that one query covers them all.

Powertools writes structured JSON logs and CloudWatch embedded metrics to standard output, and records X-Ray
segments through aws-xray-sdk, which nothing else may use (docs/decisions.md).
"""

from collections.abc import Callable
from typing import Any, TypeVar

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.utilities.typing import LambdaContext

logger = Logger(use_rfc3339=True)
metrics = Metrics()
tracer = Tracer(auto_patch=False)

Answer = TypeVar("Answer")


def instrumented(
    handler: Callable[[dict[str, Any], LambdaContext], Answer],
) -> Callable[[dict[str, Any], Any], Answer]:
    """Decorate a Lambda handler: log keys, metrics and a trace segment per event.

    Keys appended to the logger are cleared with the next event. Metrics are flushed when the handler returns
    or raises. Powertools captures neither events nor responses nor exceptions, because they may contain
    tokens and payloads, which must never reach a log or a trace. The X-Ray SDK still records the type and
    message of an exception that leaves the handler, and Lambda logs them: a handler that reads tokens must
    catch its own exceptions.
    """
    traced: Any = tracer.capture_lambda_handler(handler, capture_response=False, capture_error=False)
    measured: Any = metrics.log_metrics(traced)
    logged: Callable[[dict[str, Any], Any], Answer] = logger.inject_lambda_context(measured, clear_state=True)
    return logged


def trace_clients() -> None:
    """Record a subsegment for each call of an AWS client. Imports botocore, which not all functions need."""
    tracer.patch(modules=["botocore"])
