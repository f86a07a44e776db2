"""Starting broadcasts from a service, and waiting for their receipts.

    broadcaster = Broadcaster.from_outputs()
    execution = broadcaster.start("alert", {"roles": ["first_responder"]}, {"text": "..."}, name="flood-17")
    receipt = broadcaster.wait(execution, timeout=60)

Everything it raises is a `BroadcastError`; the tree is drawn in `muster/errors.py`.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Self
from uuid import uuid4

from muster.aws import error_code
from muster.errors import MusterError
from muster.faults import json_text, parse_faults
from muster.outputs import Outputs
from muster.types import MessageType, Offline, ReceiptOutput, Sender, Target

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

__all__ = [
    "BroadcastError",
    "BroadcastFailed",
    "BroadcastTimeout",
    "Broadcaster",
    "Execution",
    "IdempotencyConflict",
    "InvalidBroadcast",
    "InvalidName",
    "InvalidRequest",
    "MessageType",
    "Offline",
    "Partition",
    "Receipt",
    "UnknownBroadcast",
]

NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""A name that Step Functions accepts and CloudWatch can log. [StartExecution]"""

ARN = re.compile(r"arn:[a-z-]+:states:[a-z0-9-]+:\d{12}:stateMachine:(?=.{1,80}$)[A-Za-z0-9_-]*-broadcast")
"""The ARN of the broadcast state machine, which terraform/ calls NAME_PREFIX-broadcast. [StartExecution]"""

POLL_SECONDS = (0.1, 1.0)
"""The first and the longest pause between two requests for the state of a young execution."""

YOUNG_SECONDS = 10.0
"""How long `wait` asks that often. Nearly every broadcast ends sooner."""

LATER_POLL_SECONDS = (2.0, 5.0)
"""The bounds of the random pause after that, and after a throttled request. DescribeExecution accepts 10
requests/s in most regions, for all callers of an account. [Step Functions quotas, API action throttling]"""

CONSISTENCY_SECONDS = 5.0
"""How long Step Functions may not know a started execution. [DescribeExecution is eventually consistent]"""

_EVENTS_TO_RECORD = 100
"""How many events of a history are read. Accept, Claim and all their retries make fewer."""

_REFUSALS = frozenset({"InvalidBroadcast", "Conflict"})

_THROTTLED = frozenset({"TooManyRequestsException", "RequestLimitExceeded", "SlowDown"})


class BroadcastError(MusterError):
    """Base of what a `Broadcaster` raises."""


class InvalidName(BroadcastError, ValueError):
    """The name cannot be the name of an execution."""

    exit_code: ClassVar[int] = 2


class InvalidRequest(BroadcastError, ValueError):
    """The request contains a value that JSON cannot represent, such as NaN or a date.

    The message names its place as a JSON Pointer.
    """

    exit_code: ClassVar[int] = 2


class IdempotencyConflict(BroadcastError):
    """The name was used, within the last 90 days, for a different broadcast: nothing was started."""


class UnknownBroadcast(BroadcastError):
    """There is no such execution: it never started, or ended more than 90 days ago."""


class BroadcastFailed(BroadcastError):
    """The execution ended without a receipt. A recorded message still reaches clients on resume."""

    def __init__(
        self, message: str, *, execution: Execution, error: str, cause: str, fix: str | None = None
    ) -> None:
        super().__init__(message, fix=fix)
        self.execution = execution
        self.error = error
        self.cause = cause


class InvalidBroadcast(BroadcastFailed):
    """The request was refused before anything was sent. `faults` lists everything that is wrong with it.

    `error` is "InvalidBroadcast", or "Conflict" when its `id` is the id of another message.
    """

    def __init__(self, execution: Execution, cause: str, error: str = "InvalidBroadcast") -> None:
        self.faults = parse_faults(json.loads(cause)["faults"])
        super().__init__(
            f"The broadcast was refused: {len(self.faults)} fault(s) in the request.",
            execution=execution,
            error=error,
            cause=cause,
            fix="\n".join(str(fault) for fault in self.faults),
        )


class BroadcastTimeout(BroadcastError, TimeoutError):
    """The receipt did not come in time. The broadcast continues, and waiting again is safe."""


@dataclass(frozen=True)
class Execution:
    """A started broadcast."""

    arn: str
    already_started: bool = False
    """True when this name had started the same broadcast before, and nothing new was started.
    While the first is still running, Step Functions does not report a repeat, and it is False."""

    @property
    def name(self) -> str:
        """The idempotency key."""
        return self.arn.rpartition(":")[2]


@dataclass(frozen=True)
class Partition:
    """A part of an audience: a user, a shelter, or a shard of a role or of all connections."""

    scope: str
    value: str


@dataclass(frozen=True)
class Receipt:
    """The result of a broadcast. audience = delivered + gone + failed, counted in connections."""

    id: str
    """The message id that every recipient sees."""
    type: MessageType
    audience: int
    delivered: int
    gone: int
    failed: int
    offline: int
    """Notified users: published to SNS, because none of their connections took the message."""
    offline_failed: int
    """Users who could not be published to SNS. They still get the message when they resume."""
    pages: int
    retries: int
    partitions: int
    unreached: tuple[Partition, ...]
    """Partitions whose fan-out failed, published to SNS as a whole."""
    notified: bool
    """Whether the message was published to SNS for the whole target."""
    started_at: datetime
    duration_ms: int

    @classmethod
    def parse(cls, output: ReceiptOutput | Mapping[str, Any]) -> Self:
        """Return the receipt that an execution's output describes, as in `schemas/receipt.schema.json`."""
        return cls(
            id=output["id"],
            type=output["type"],
            audience=output["audience"],
            delivered=output["delivered"],
            gone=output["gone"],
            failed=output["failed"],
            offline=output["offline"],
            offline_failed=output["offlineFailed"],
            pages=output["pages"],
            retries=output["retries"],
            partitions=output["partitions"],
            unreached=tuple(Partition(part["scope"], part["value"]) for part in output["unreached"]),
            notified=output["notified"],
            started_at=datetime.fromisoformat(output["startedAt"]),
            duration_ms=output["durationMs"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `parse` takes."""
        return {
            "id": self.id,
            "type": self.type,
            "audience": self.audience,
            "delivered": self.delivered,
            "gone": self.gone,
            "failed": self.failed,
            "offline": self.offline,
            "offlineFailed": self.offline_failed,
            "pages": self.pages,
            "retries": self.retries,
            "partitions": self.partitions,
            "unreached": [{"scope": part.scope, "value": part.value} for part in self.unreached],
            "notified": self.notified,
            "startedAt": self.started_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "durationMs": self.duration_ms,
        }


class Broadcaster:
    """Starts broadcasts of one deployment. Needs the policy of the Terraform output publisher_policy_json.

    Threads may share it, as they may share boto3 clients.
    """

    def __init__(self, state_machine_arn: str, client: SFNClient | None = None) -> None:
        """`client` is a boto3 Step Functions client; by default one in the state machine's own region.

        Raises `BroadcastError` if the ARN is not that of a broadcast state machine.
        """
        if not isinstance(state_machine_arn, str) or not ARN.fullmatch(state_machine_arn):
            raise BroadcastError(
                f"{state_machine_arn!r} is not the ARN of a broadcast state machine.",
                fix="Use the Terraform output broadcast_state_machine_arn, or Broadcaster.from_outputs().",
            )
        if client is None:
            import boto3  # noqa: PLC0415 - slow to import

            client = boto3.client("stepfunctions", region_name=state_machine_arn.split(":")[3])
        self._state_machine_arn = state_machine_arn
        self._client = client

    @classmethod
    def from_outputs(cls, outputs: Outputs | Path | str | None = None) -> Self:
        """Return a broadcaster for the deployment with these outputs.

        `outputs` may be a file with what `terraform output -json` printed, or a Terraform directory. By
        default it is what MUSTER_OUTPUTS names, else the running local stack. Raises `OutputsError`.
        """
        found = outputs if isinstance(outputs, Outputs) else Outputs.find(outputs)
        return cls(found.broadcast_state_machine_arn, found.client("stepfunctions"))

    def start(
        self,
        type: MessageType,
        target: Target | Mapping[str, Any],
        payload: Mapping[str, Any],
        *,
        offline: Offline = "fallback",
        shelter_id: str | None = None,
        sender: Sender | Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Execution:
        """Start a broadcast and return at once; `schemas/broadcast.schema.json` describes the request.

        `name` is the idempotency key: within 90 days, all calls with the same name start one broadcast.
        Without a name, only botocore's own retries of this call are safe. Two requests are the same if their
        JSON is: tuples are arrays, and every key is text. `sender` is shown to clients as the sender, by
        default {"service": "unnamed"}.

        Raises `InvalidName`, `InvalidRequest`, `IdempotencyConflict` or `BroadcastError`; `wait_accepted` and
        `wait` raise `InvalidBroadcast` if the request is refused.
        """
        name = uuid4().hex if name is None else name
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InvalidName(
                f"{name!r} cannot name a broadcast.",
                fix="Use 1 to 80 of the characters A-Z, a-z, 0-9, - and _.",
            )
        request: dict[str, Any] = {"type": type, "target": target, "payload": payload, "offline": offline}
        if shelter_id is not None:
            request["shelterId"] = shelter_id
        if sender is not None:
            request["sender"] = sender
        text = _canonical(json_text(request, InvalidRequest))
        with _translated("started") as aws:
            try:
                answer = self._client.start_execution(
                    stateMachineArn=self._state_machine_arn, name=name, input=text
                )
            except aws.ClientError as error:
                if error_code(error) != "ExecutionAlreadyExists":
                    raise
                return self._started_before(name, text)
        return Execution(answer["executionArn"])

    def execution(self, name: str) -> Execution:
        """Return the execution of that name, such as the `execution` of an ack."""
        machine = self._state_machine_arn.split(":")
        return Execution(":".join([*machine[:5], "execution", machine[6], name]))

    def wait(
        self, execution: Execution, timeout: float, on_poll: Callable[[float], None] | None = None
    ) -> Receipt:
        """Return the receipt of a broadcast.

        Asks Step Functions every 0.1 s at first, then every second, and every 2 to 5 s after YOUNG_SECONDS.
        While Step Functions throttles or fails to answer, the broadcast counts as running. `on_poll` is
        called with the seconds waited, each time the broadcast is found running. Raises `InvalidBroadcast`,
        `BroadcastFailed`, `UnknownBroadcast` or `BroadcastError`, and `BroadcastTimeout` after `timeout`
        seconds.
        """
        described = self._follow(execution, timeout, "receipt", on_poll, lambda: False)
        return _receipt(execution, described)

    def wait_accepted(self, execution: Execution, timeout: float) -> None:
        """Return once the request is accepted and its message is being recorded.

        It reads the execution's history. If the caller's policy does not allow that, it returns when the
        broadcast ends. Raises what `wait` raises.
        """
        self._follow(execution, timeout, "sign of acceptance", None, lambda: self._accepted(execution))

    def _follow(
        self,
        execution: Execution,
        timeout: float,
        awaited: str,
        on_poll: Callable[[float], None] | None,
        enough: Callable[[], bool],
    ) -> Mapping[str, Any]:
        """Return the description of a broadcast that has succeeded, or that is running and is `enough`."""
        started = time.monotonic()
        pause, longest = POLL_SECONDS
        while True:
            waited = time.monotonic() - started
            described = self._describe(execution, just_started=waited < CONSISTENCY_SECONDS)
            if described and described["status"] not in ("SUCCEEDED", "RUNNING"):
                raise _failure(execution, described)
            if described and (described["status"] == "SUCCEEDED" or enough()):
                return described
            waited = time.monotonic() - started
            if not waited < timeout:
                state = "It is still running" if described else "Step Functions did not return its state"
                raise BroadcastTimeout(
                    f"The broadcast {execution.name} gave no {awaited} within {timeout:g} s.",
                    fix=f"{state}: see {execution.arn}, or start it again by its name, which only waits.",
                )
            if on_poll:
                on_poll(waited)
            if described is None or waited >= YOUNG_SECONDS:
                pause = random.uniform(*LATER_POLL_SECONDS)  # noqa: S311 - spreads load, guards nothing
            time.sleep(min(pause, timeout - waited))
            pause = min(pause * 1.5, longest)

    def _describe(self, execution: Execution, *, just_started: bool) -> Mapping[str, Any] | None:
        """Return the description of an execution; None when Step Functions cannot answer now.

        An execution that was just started is running, even if Step Functions does not know it yet.
        """
        with _translated("followed") as aws:
            try:
                answer: Mapping[str, Any] = self._client.describe_execution(executionArn=execution.arn)
            except (aws.BotoCoreError, aws.ClientError) as error:
                if just_started and error_code(error) == "ExecutionDoesNotExist":
                    return {"status": "RUNNING"}
                if error_code(error) in ("ExecutionDoesNotExist", "InvalidArn"):
                    raise UnknownBroadcast(
                        f"There is no broadcast {execution.arn}.",
                        fix="Start it, or correct its name; Step Functions forgets it after 90 days.",
                    ) from error
                if _transient(error):
                    return None
                raise
        return answer

    def _accepted(self, execution: Execution) -> bool:
        """Return whether the execution has entered Record, which only an accepted request does."""
        with _translated("followed") as aws:
            try:
                history = self._client.get_execution_history(
                    executionArn=execution.arn, maxResults=_EVENTS_TO_RECORD, includeExecutionData=False
                )
            except (aws.BotoCoreError, aws.ClientError) as error:
                code = error_code(error)
                if _transient(error) or code in ("AccessDeniedException", "ExecutionDoesNotExist"):
                    return False
                raise
        names = (event.get("stateEnteredEventDetails", {}).get("name") for event in history["events"])
        return "Record" in names

    def _started_before(self, name: str, text: str) -> Execution:
        """Return the execution that has this name if its input is `text`, else raise IdempotencyConflict."""
        earlier = Execution(self.execution(name).arn, already_started=True)
        deadline = time.monotonic() + CONSISTENCY_SECONDS
        pause = POLL_SECONDS[0]
        while True:
            described = self._describe(earlier, just_started=True)
            if described and "input" in described:
                break
            if time.monotonic() >= deadline:
                raise BroadcastError(
                    f"The name {name} was already used, and Step Functions cannot say yet for what.",
                    fix="Repeat the call with the same name: it starts nothing twice.",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, POLL_SECONDS[1])
        before, now = _comparable(described["input"]), _comparable(text)
        if before == now:
            return earlier
        if described.get("error") in _REFUSALS:
            raise IdempotencyConflict(
                f"The name {name} was already used for a request that was refused; nothing of it was sent.",
                fix="Use a new name for the corrected request; names are kept for 90 days.",
            )
        differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        raise IdempotencyConflict(
            f"The name {name} was already used for a broadcast that differs in {', '.join(differing)}.",
            fix="Use a new name for a new broadcast; names are kept for 90 days.",
        )


def _canonical(text: str) -> str:
    """Return JSON with sorted keys: Step Functions compares the inputs of a name as text."""
    try:
        value = json.loads(text, object_pairs_hook=_unambiguous)
    except RecursionError:
        raise InvalidRequest("The request is nested too deeply.", fix="Flatten it.") from None
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of its members. Raises `InvalidRequest` for keys that are equal as text: 1 and "1"."""
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InvalidRequest(
            f"An object has the key {twice!r} twice after its keys are converted to text.",
            fix="Use plain text for each key.",
        )
    return members


def _comparable(text: str) -> dict[str, Any]:
    """Return JSON as Python values that are equal if the JSON is: 1 is 1.0, and is not true."""

    def number(digits: str) -> tuple[str, Decimal]:
        return "number", Decimal(digits)

    value = json.loads(text, parse_int=number, parse_float=number)
    return value if isinstance(value, dict) else {"the input": value}


def _transient(error: Exception) -> bool:
    """Return whether a repeated call may succeed: it was throttled, or the server or network failed."""
    from botocore import exceptions as aws  # noqa: PLC0415 - slow to import

    if isinstance(error, aws.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error_code(error)
        return "Throttl" in code or code in _THROTTLED or status == 429 or status >= 500
    if isinstance(error, aws.SSLError):
        return False
    return isinstance(error, aws.ConnectionError | aws.HTTPClientError)


def _receipt(execution: Execution, described: Mapping[str, Any]) -> Receipt:
    try:
        return Receipt.parse(json.loads(described["output"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BroadcastError(
            f"The broadcast {execution.name} ended with a receipt that this version cannot read: {error!r}.",
            fix=f"See the output of {execution.arn}, and use the version of Muster that is deployed.",
        ) from error


def _failure(execution: Execution, described: Mapping[str, Any]) -> BroadcastFailed:
    error = described.get("error") or described["status"]
    cause = described.get("cause") or ""
    if error in _REFUSALS:
        with suppress(KeyError, TypeError, ValueError):  # a cause of another form is quoted below
            return InvalidBroadcast(execution, cause, error)
    return BroadcastFailed(
        f"The broadcast {execution.name} failed with {error}: {cause or 'no cause was given'}.",
        execution=execution,
        error=error,
        cause=cause,
        fix=f"See the execution {execution.arn} in Step Functions.",
    )


@contextmanager
def _translated(done: str) -> Iterator[ModuleType]:
    """Yield botocore's exceptions. Those that leave the block are raised as a BroadcastError."""
    from botocore import exceptions as aws  # noqa: PLC0415 - slow to import

    try:
        yield aws
    except (aws.BotoCoreError, aws.ClientError) as error:
        raise BroadcastError(
            f"The broadcast cannot be {done}: {error}.",
            fix="Check the credentials, the region and the state machine's ARN.",
        ) from error
