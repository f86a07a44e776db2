"""Logs, metrics and traces, shared by every function so that one query spans them all.

Powertools writes structured JSON logs and CloudWatch embedded metrics to standard output, and records X-Ray
segments through aws-xray-sdk, which nothing else may use (docs/decisions.md). Neither events, responses nor
exceptions are captured: they may hold tokens and payloads, and those never reach a log or a trace.
"""

from aws_lambda_powertools import Logger, Metrics, Tracer

logger = Logger(use_rfc3339=True)
metrics = Metrics()
tracer = Tracer(auto_patch=False)


def trace_clients() -> None:
    """Record a subsegment for each call of an AWS client. Imports botocore, which not all functions need."""
    tracer.patch(modules=["botocore"])
