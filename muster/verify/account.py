"""Checks that read the deployment's settings and the account's quotas. They change nothing."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

from muster.aws import error_code
from muster.errors import MusterError
from muster.outputs import Outputs
from muster.verify.aws import name_prefix
from muster.verify.check import DENIED, Check
from muster.verify.probe import Probe, roles_of
from muster.verify.rows import Broken, CannotTell
from muster.verify.sources import OPERATIONS

PAGING_ALARMS = (
    "broadcasts-failed",
    "partitions-unreached",
    "offline-failed",
    "connections-failed",
    "undeliverable",
)
"""The alarms of terraform/alarms.tf that report people who were not reached."""

EXPIRING = ("connections", "messages")

TRACE_SECONDS = 60.0


async def function(probe: Probe, name: str) -> dict[str, Any]:
    """Return the configuration of a function, by the name of its source file."""
    deployed = probe.outputs.function_names.get(name)
    if deployed is None:
        raise CannotTell("The outputs do not name the functions.", "Export the outputs of this version.")
    return await probe.call("lambda", "get_function_configuration", FunctionName=deployed)


def role_to_test(outputs: Outputs) -> str:
    """Return the role that `--scopes role` addresses: the first by name."""
    deployed = outputs.function_names.get("default")
    if deployed is None:
        raise MusterError("The outputs do not name the functions.", fix="Export the outputs of this version.")
    configuration = outputs.client("lambda").get_function_configuration(FunctionName=deployed)
    return min(roles_of(configuration))


async def definition(probe: Probe, arn: str) -> dict[str, Any]:
    """Return the definition of a state machine."""
    described = await probe.call("stepfunctions", "describe_state_machine", stateMachineArn=arn)
    parsed: dict[str, Any] = json.loads(described["definition"])
    return parsed


def _aws_only(probe: Probe, what: str) -> None:
    if probe.local:
        raise CannotTell(f"The emulator has no {what}.", "Run it on AWS.")


# ---- Quotas


async def request_quota(probe: Probe) -> str:
    """Compare the rate of posts with the requests per second that the account may make."""
    _aws_only(probe, "Service Quotas")
    machine = await definition(probe, probe.outputs.broadcast_state_machine_arn)
    pace = re.search(
        r"\$burst := (?P<burst>[\d.e+]+) / \$lanes; \{'rate': (?P<rate>[\d.e+]+) / \$lanes",
        json.dumps(machine),
    )
    if pace is None:
        raise CannotTell(
            "The definition of the broadcast machine has no known rate.",
            "Use the version of Muster that is deployed.",
        )
    burst, rate = float(pace["burst"]), float(pace["rate"])
    allowed_rate, allowed_burst = await _throttle(probe)
    figures = f"post_rate {rate:g} of {allowed_rate:g}/s, post_burst {burst:g} of {allowed_burst:g}"
    if rate > allowed_rate or burst > allowed_burst:
        raise Broken(
            f"Broadcasts exceed the account's quota: {figures}.",
            "Lower post_rate and post_burst, or raise the quota: docs/operations.md#raising-quotas.",
        )
    return f"{figures}."


async def _throttle(probe: Probe) -> tuple[float, float]:
    """Return the account's rate and burst from API Gateway, or else from Service Quotas."""
    try:
        account = await probe.call("apigateway", "get_account")
        settings = account["throttleSettings"]
        return float(settings["rateLimit"]), float(settings["burstLimit"])
    except (ClientError, KeyError) as error:
        if isinstance(error, ClientError) and error_code(error) not in DENIED:
            raise
    quotas = await _quotas(probe, "apigateway")
    rate, burst = quotas.get("Throttle rate"), quotas.get("Throttle burst rate")
    if rate is None or burst is None:
        raise CannotTell("Service Quotas lists no throttle rate for API Gateway.")
    return rate, burst


async def _quotas(probe: Probe, service: str) -> dict[str, float]:
    entries = await probe.pages("service-quotas", "list_service_quotas", "Quotas", ServiceCode=service)
    return {entry["QuotaName"]: float(entry["Value"]) for entry in entries if "Value" in entry}


async def granted_quotas(probe: Probe) -> str:
    """Report what Service Quotas lists for WebSockets."""
    _aws_only(probe, "Service Quotas")
    quotas = await _quotas(probe, "apigateway")
    shown = {name: value for name, value in quotas.items() if "hrottle" in name or "WebSocket" in name}
    if not shown:
        raise CannotTell("Service Quotas lists nothing about WebSockets or throttling for API Gateway.")
    connects = [value for name, value in shown.items() if "onnection" in name and "second" in name]
    shards = int((await function(probe, "connect"))["Environment"]["Variables"]["AUDIENCE_SHARDS"])
    listed = ", ".join(f"{name} {value:g}" for name, value in sorted(shown.items()))
    # A DynamoDB partition takes 1,000 writes a second, and each connect is one [DynamoDB limits].
    if connects and max(connects) > 1000 * shards:
        raise Broken(
            f"{listed}; but {shards} audience shards take only {1000 * shards} connects a second.",
            f"Set audience_shards to {-(-int(max(connects)) // 1000)}.",
        )
    if not connects:
        raise CannotTell(f"Service Quotas lists no connects per second, only {listed}.")
    return f"{listed}."


async def lambda_concurrency(probe: Probe) -> str:
    """Compare the account's unreserved concurrency with the concurrency of one broadcast."""
    _aws_only(probe, "limit of concurrent executions")
    broadcast = await definition(probe, probe.outputs.broadcast_state_machine_arn)
    fanout = await definition(probe, probe.outputs.fanout_state_machine_arn)
    lanes = re.search(r'"MaxConcurrency": "\{% (\d+) %\}"', json.dumps(broadcast))
    batches = re.search(r'"MaxConcurrency": "\{% (\d+) %\}"', json.dumps(fanout))
    if lanes is None or batches is None:
        raise CannotTell(
            "The definitions of the machines have no known concurrency.",
            "Use the version of Muster that is deployed.",
        )
    wanted = int(lanes[1]) * int(batches[1])
    limit = (await probe.call("lambda", "get_account_settings"))["AccountLimit"]
    free = limit["UnreservedConcurrentExecutions"]
    if free < wanted:
        raise Broken(
            f"Only {free} concurrent executions are unreserved, and a broadcast uses up to {wanted}.",
            "Raise the quota of Lambda's concurrent executions, or lower partition_concurrency.",
        )
    return f"{free} concurrent executions are unreserved; a broadcast uses up to {wanted}."


# ---- What is deployed


def _tables(probe: Probe) -> dict[str, str]:
    outputs = probe.outputs
    return {
        "connections": outputs.connections_table,
        "users": outputs.users_table,
        "messages": outputs.messages_table,
        "shelters": outputs.shelters_table,
    }


async def expiry(probe: Probe) -> str:
    """Read the time to live of the tables whose rows expire."""
    off = []
    for name in EXPIRING:
        answer = await probe.call("dynamodb", "describe_time_to_live", TableName=_tables(probe)[name])
        described = answer["TimeToLiveDescription"]
        if described.get("TimeToLiveStatus") not in ("ENABLED", "ENABLING") or (
            described.get("AttributeName") != "ttl"
        ):
            off.append(name)
    if off:
        raise Broken(f"Rows do not expire in {' and '.join(off)}.", "Apply terraform/ again.")
    return "Rows of connections and messages expire by the attribute ttl."


async def recovery(probe: Probe) -> str:
    """Read the point-in-time recovery of the tables that the module created."""
    off, others = [], []
    for name, table in _tables(probe).items():
        if table != f"{name_prefix(probe.outputs)}-{name}":
            others.append(table)  # named in existing_tables: its owner decides
            continue
        answer = await probe.call("dynamodb", "describe_continuous_backups", TableName=table)
        status = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
        if status.get("PointInTimeRecoveryStatus") != "ENABLED":
            off.append(name)
    if off:
        raise Broken(f"Without point-in-time recovery: {', '.join(off)}.", "Apply terraform/ again.")
    return "Every table has it" + (f", except your own {', '.join(others)}." if others else ".")


async def encryption(probe: Probe) -> str:
    """Read the encryption settings of the offline topic and its SQS queue."""
    topic = await probe.call("sns", "get_topic_attributes", TopicArn=probe.outputs.offline_topic_arn)
    queue = await probe.call(
        "sqs", "get_queue_attributes", QueueUrl=probe.outputs.offline_queue_url, AttributeNames=["All"]
    )
    plain = [] if topic["Attributes"].get("KmsMasterKeyId") else ["topic"]
    attributes = queue["Attributes"]
    if not attributes.get("KmsMasterKeyId") and attributes.get("SqsManagedSseEnabled") != "true":
        plain.append("SQS queue")
    if plain:
        raise Broken(f"Not encrypted at rest: offline {' and '.join(plain)}.", "Apply terraform/ again.")
    return "The offline topic and its SQS queue are encrypted at rest."


async def plain_http(probe: Probe) -> str:
    """Look for the statement in the policy of the offline SQS queue that denies plain HTTP.

    A request over plain HTTP would prove no more: SQS also refuses an unsigned one for its missing signature,
    and a signed one would send the credentials' session token over the network unencrypted.
    """
    _aws_only(probe, "TLS")
    answer = await probe.call(
        "sqs", "get_queue_attributes", QueueUrl=probe.outputs.offline_queue_url, AttributeNames=["Policy"]
    )
    policy = json.loads(answer.get("Attributes", {}).get("Policy") or "{}")
    statements = policy.get("Statement", [])
    statements = statements if isinstance(statements, list) else [statements]
    if not any(_denies_plain_http(each, probe.outputs.offline_queue_arn) for each in statements):
        raise Broken(
            "The policy of the offline SQS queue does not deny plain HTTP.", "Apply terraform/ again."
        )
    return "The policy of the offline SQS queue denies every call over plain HTTP."


def _denies_plain_http(statement: Mapping[str, Any], queue_arn: str) -> bool:
    """Return whether a statement denies everybody every call over plain HTTP, under no other condition."""
    return (
        statement.get("Effect") == "Deny"
        and statement.get("Principal") in ("*", {"AWS": "*"})
        and str(statement.get("Action")).lower() in ("sqs:*", "*")
        and statement.get("Resource") in (queue_arn, "*")
        and statement.get("Condition") == {"Bool": {"aws:SecureTransport": "false"}}
    )


async def log_groups(probe: Probe) -> str:
    """Read the retention of each log group."""
    names = sorted(set(probe.outputs.log_groups.values()))
    if not names:
        raise CannotTell("The outputs name no log groups.", "Export the outputs of this version.")
    problems = []
    for name in names:
        found = await probe.pages("logs", "describe_log_groups", "logGroups", logGroupNamePrefix=name)
        group = next((group for group in found if group["logGroupName"] == name), None)
        if group is None:
            problems.append(f"{name} is missing")
        elif not group.get("retentionInDays"):
            problems.append(f"{name} has no retention")
    if problems:
        raise Broken(f"{'; '.join(problems)}.", "Apply terraform/ again.")
    return f"{len(names)} log groups exist, each with a retention."


async def alarms(probe: Probe) -> str:
    """Read the alarms that report people who were not reached, and their actions."""
    _aws_only(probe, "alarms of Muster")
    found = {
        alarm["AlarmName"].removeprefix(f"{name_prefix(probe.outputs)}-"): alarm
        for alarm in await probe.pages(
            "cloudwatch", "describe_alarms", "MetricAlarms", AlarmNamePrefix=f"{name_prefix(probe.outputs)}-"
        )
    }
    if missing := [name for name in PAGING_ALARMS if name not in found]:
        raise Broken(f"Missing alarms: {', '.join(missing)}.", "Apply terraform/ again.")
    if silent := [name for name in PAGING_ALARMS if not found[name].get("AlarmActions")]:
        raise Broken(f"Alarms without an action: {', '.join(silent)}.", "Set alarm_actions.")
    ringing = sorted(name for name, alarm in found.items() if alarm.get("StateValue") == "ALARM")
    return f"{len(found)} alarms exist and have actions. In alarm now: {', '.join(ringing) or 'none'}."


async def traces(probe: Probe) -> str:
    """Look for the trace of a broadcast, and whether it includes the fan-out."""
    _aws_only(probe, "X-Ray")
    execution = await probe.start({"users": [probe.users.absent.user_id]}, {"text": "Trace of a test."})
    await probe.receipt(execution)
    described = await probe.call("stepfunctions", "describe_execution", executionArn=execution.arn)
    root = re.search(r"Root=([^;]+)", described.get("traceHeader") or "")
    if root is None:
        raise CannotTell("The execution has no trace header: it was not sampled.", "Run it again.")
    deadline = time.monotonic() + TRACE_SECONDS
    names: set[str] = set()
    fanout = f"{name_prefix(probe.outputs)}-fanout"
    while True:
        answer = await probe.call("xray", "batch_get_traces", TraceIds=[root[1]])
        names |= {
            str(json.loads(segment["Document"]).get("name"))
            for trace in answer.get("Traces", ())
            for segment in trace.get("Segments", ())
        }
        if fanout in names or time.monotonic() >= deadline:
            break
        await asyncio.sleep(2)
    if not names:
        raise CannotTell(
            f"No trace appeared within {TRACE_SECONDS:.0f} s: the broadcast may not have been sampled."
        )
    joins = "joins its trace" if fanout in names else "has a trace of its own"
    return f"The broadcast is traced. Its fan-out {joins}."


CHECKS = (
    Check("post-rate", "Broadcasts stay below the account's quota.", OPERATIONS, request_quota),
    Check("quotas", "The shards accept as many connects as the account allows.", OPERATIONS, granted_quotas),
    Check(
        "lambda-concurrency",
        "Lambda can run all batches of a broadcast at once.",
        OPERATIONS,
        lambda_concurrency,
    ),
    Check("expiry", "Rows of connections and messages expire.", "Muster: docs/data.md", expiry),
    Check("recovery", "Tables can be restored to a point in time.", "Muster: docs/data.md", recovery),
    Check("encryption", "Messages in SNS and SQS are encrypted.", "Muster: docs/data.md", encryption),
    Check("plain-http", "The SQS queue refuses plain HTTP.", "Muster: docs/security.md", plain_http),
    Check("log-groups", "Logs are kept, for a limited time.", OPERATIONS, log_groups),
    Check("alarms", "Somebody is notified when people are not reached.", OPERATIONS, alarms),
    Check("traces", "A broadcast is traced.", OPERATIONS, traces),
)
