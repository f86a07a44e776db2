"""Accept: validate a broadcast request, and prepare what the later states need."""

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.shared import audiences, broadcasts, messages, settings
from functions.shared.errors import InvalidMessage
from functions.shared.instants import epoch
from functions.shared.telemetry import instrumented, logger, metrics


@dataclass(frozen=True)
class Execution:
    """The execution that broadcasts: its ARN and the epoch seconds of its start."""

    id: str
    started_at: float


@cache
def config() -> settings.Accept:
    """Read once per execution environment."""
    return settings.load(settings.Accept)


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer {"accepted": true, ...} or {"accepted": false, "faults": [...]}.

    `event` is {"request": the execution's input, "execution": {"id", "startTime"}}. A rejected request is an
    answer and not an error, so the state machine does not retry it: the execution fails with the faults as
    its cause.
    """
    execution = Execution(event["execution"]["id"], epoch(event["execution"]["startTime"]))
    try:
        accepted = accept(event["request"], execution, config())
    except InvalidMessage as refusal:
        metrics.add_metric("BroadcastsRefused", "Count", 1)
        logger.warning("broadcast refused", extra={"faults": len(refusal.faults)})
        return {"accepted": False, "faults": [asdict(fault) for fault in refusal.faults]}
    metrics.add_metric("BroadcastsAccepted", "Count", 1)
    logger.info(
        "broadcast accepted", extra={key: accepted[key] for key in ("messageId", "type", "audiences")}
    )
    return {"accepted": True, **accepted}


def accept(request: Any, execution: Execution, using: settings.Accept) -> dict[str, Any]:
    """The accepted broadcast: its id, envelope and audience keys, and the partitions with their queries.

    An execution always gets the same result, so Accept may be retried.
    Raises `InvalidMessage` or `TooLarge` with every fault.
    """
    identifier = messages.message_id(execution.id, execution.started_at)
    envelope = broadcasts.check(request, identifier, execution.started_at, using.roles)
    target = request["target"]
    return {
        "messageId": request.get("id", identifier),
        "type": request["type"],
        "envelope": envelope,
        "digest": messages.digest(request),
        "offline": request.get("offline", "fallback"),
        "expiresAt": int(execution.started_at) + using.message_retention_seconds,
        "audiences": audiences.audience_keys(target),
        "partitions": audiences.partitions(target, using.audience_shards),
        "queries": audiences.queries(target),
    }
