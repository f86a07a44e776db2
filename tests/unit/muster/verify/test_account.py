"""Each check of `muster verify` that reads settings fails on a wrong one."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from muster.verify import CHECKS, account
from muster.verify.check import carry_out
from muster.verify.rows import Row
from tests.support.fake_world import OUTPUTS, World

BROADCAST = {
    "States": {
        "FanOut": {
            "MaxConcurrency": "{% 10 %}",
            "pace": "{% ( $burst := 4500 / $lanes; {'rate': 9500 / $lanes, 'burst': $burst} ) %}",
        }
    }
}
FANOUT = {"States": {"Deliver": {"MaxConcurrency": "{% 2 %}"}}}


def machine(stateMachineArn: str) -> dict[str, str]:
    return {"definition": json.dumps(FANOUT if "fanout" in stateMachineArn else BROADCAST)}


def quota(name: str, value: float) -> dict[str, object]:
    return {"QuotaName": name, "Value": value}


def alarm(name: str, state: str = "OK", *, tells: bool = True) -> dict[str, Any]:
    actions = ["arn:aws:sns:eu-west-1:123456789012:on-call"] if tells else []
    return {"AlarmName": f"town-{name}", "StateValue": state, "AlarmActions": actions}


def denied(operation: str) -> ClientError:
    return ClientError({"Error": {"Code": "AccessDeniedException", "Message": "No."}}, operation)


def shards(count: int) -> dict[str, Any]:
    return {"Environment": {"Variables": {"AUDIENCE_SHARDS": str(count)}}}


def expires(status: str = "ENABLED", attribute: str = "ttl") -> dict[str, Any]:
    return {"TimeToLiveDescription": {"TimeToLiveStatus": status, "AttributeName": attribute}}


def restorable(status: str) -> dict[str, Any]:
    recovery = {"PointInTimeRecoveryStatus": status}
    return {"ContinuousBackupsDescription": {"PointInTimeRecoveryDescription": recovery}}


def queue(policy: dict[str, Any]) -> dict[str, Any]:
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    return {"Attributes": {"SqsManagedSseEnabled": "true", "Policy": document}}


def deny_plain_http(**changes: Any) -> dict[str, Any]:
    """Return the statement of terraform/offline_queues.tf."""
    statement = {"Effect": "Deny", "Principal": "*", "Action": "sqs:*", "Resource": OUTPUTS.offline_queue_arn}
    return statement | {"Condition": {"Bool": {"aws:SecureTransport": "false"}}} | changes


GOOD: dict[str, Any] = {
    "stepfunctions.describe_state_machine": machine,
    "apigateway.get_account": {"throttleSettings": {"rateLimit": 10000.0, "burstLimit": 5000}},
    "service-quotas.list_service_quotas": {
        "Quotas": [
            quota("Throttle rate", 10000),
            quota("Throttle burst rate", 5000),
            quota("New connections per second for WebSocket APIs", 500),
        ]
    },
    "lambda.get_function_configuration": shards(4),
    "lambda.get_account_settings": {"AccountLimit": {"UnreservedConcurrentExecutions": 1000}},
    "dynamodb.describe_time_to_live": expires(),
    "dynamodb.describe_continuous_backups": restorable("ENABLED"),
    "sns.get_topic_attributes": {"Attributes": {"KmsMasterKeyId": "alias/aws/sns"}},
    "sqs.get_queue_attributes": queue(policy=deny_plain_http()),
    "logs.describe_log_groups": {
        "logGroups": [{"logGroupName": "/aws/lambda/town-connect", "retentionInDays": 30}]
    },
    "cloudwatch.describe_alarms": {"MetricAlarms": [alarm(name) for name in account.PAGING_ALARMS]},
    "stepfunctions.describe_execution": {"traceHeader": "Root=1-abc;Sampled=1"},
    "xray.batch_get_traces": {
        "Traces": [
            {"Segments": [{"Document": json.dumps({"name": n})} for n in ("town-broadcast", "town-fanout")]}
        ]
    },
}

WRONG: list[tuple[str, str, Any]] = [
    ("post-rate", "apigateway.get_account", {"throttleSettings": {"rateLimit": 2500.0, "burstLimit": 1250}}),
    ("post-rate", "apigateway.get_account", {"throttleSettings": {"rateLimit": 9600.0, "burstLimit": 4000}}),
    (
        "quotas",
        "service-quotas.list_service_quotas",
        {"Quotas": [quota("New connections per second for WebSocket APIs", 5000)]},
    ),
    (
        "lambda-concurrency",
        "lambda.get_account_settings",
        {"AccountLimit": {"UnreservedConcurrentExecutions": 10}},
    ),
    ("expiry", "dynamodb.describe_time_to_live", expires("DISABLED")),
    ("expiry", "dynamodb.describe_time_to_live", expires(attribute="expires")),
    ("recovery", "dynamodb.describe_continuous_backups", restorable("DISABLED")),
    ("encryption", "sns.get_topic_attributes", {"Attributes": {}}),
    ("encryption", "sqs.get_queue_attributes", {"Attributes": {"SqsManagedSseEnabled": "false"}}),
    ("plain-http", "sqs.get_queue_attributes", {"Attributes": {}}),
    ("plain-http", "sqs.get_queue_attributes", queue(policy=deny_plain_http(Effect="Allow"))),
    ("plain-http", "sqs.get_queue_attributes", queue(policy=deny_plain_http(Action="sqs:SendMessage"))),
    ("plain-http", "sqs.get_queue_attributes", queue(policy=deny_plain_http(Principal={"AWS": "1"}))),
    ("plain-http", "sqs.get_queue_attributes", queue(policy=deny_plain_http(Condition={}))),
    ("log-groups", "logs.describe_log_groups", {"logGroups": []}),
    (
        "log-groups",
        "logs.describe_log_groups",
        {"logGroups": [{"logGroupName": "/aws/lambda/town-connect"}]},
    ),
    ("alarms", "cloudwatch.describe_alarms", {"MetricAlarms": []}),
    (
        "alarms",
        "cloudwatch.describe_alarms",
        {"MetricAlarms": [alarm(name, tells=False) for name in account.PAGING_ALARMS]},
    ),
]

UNKNOWN: list[tuple[str, str, Any]] = [
    ("post-rate", "stepfunctions.describe_state_machine", {"definition": "{}"}),
    ("post-rate", "stepfunctions.describe_state_machine", denied("DescribeStateMachine")),
    ("quotas", "service-quotas.list_service_quotas", denied("ListServiceQuotas")),
    ("quotas", "service-quotas.list_service_quotas", {"Quotas": []}),
    ("quotas", "service-quotas.list_service_quotas", {"Quotas": [quota("Throttle rate", 10000)]}),
    ("lambda-concurrency", "lambda.get_account_settings", denied("GetAccountSettings")),
    ("traces", "stepfunctions.describe_execution", {}),
]


def identify(value: object) -> str:
    return value if isinstance(value, str) else ""


def carry(name: str, changes: Mapping[str, Any] | None = None) -> Row:
    """Carry out one check on a deployment with the right settings, except for these answers."""
    world = World()
    world.answers |= GOOD | dict(changes or {})
    check = next(check for check in CHECKS if check.name == name)
    return asyncio.run(carry_out(check, world, []))


@pytest.mark.parametrize("name", [check.name for check in account.CHECKS])
def test_the_right_settings_pass(name: str) -> None:
    assert carry(name).result == "held"


@pytest.mark.parametrize(
    ("name", "call", "answer"), WRONG, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_wrong_setting_fails_the_row_and_names_the_fix(name: str, call: str, answer: Any) -> None:
    row = carry(name, {call: answer})
    assert row.result == "failed"
    assert row.fix


def test_a_deployment_without_traces_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "TRACE_SECONDS", 0.0)
    assert carry("traces", {"xray.batch_get_traces": {}}).result == "unknown"


@pytest.mark.parametrize(("name", "call", "answer"), UNKNOWN, ids=identify)
def test_a_setting_that_cannot_be_read_is_unknown(name: str, call: str, answer: Any) -> None:
    assert carry(name, {call: answer}).result == "unknown"


def test_the_quota_comes_from_service_quotas_where_the_account_may_not_be_read() -> None:
    changes: dict[str, Any] = {"apigateway.get_account": denied("GetAccount")}
    assert carry("post-rate", changes).result == "held"
    changes["service-quotas.list_service_quotas"] = {
        "Quotas": [quota("Throttle rate", 2500), quota("Throttle burst rate", 1250)]
    }
    assert carry("post-rate", changes).result == "failed"
    changes["service-quotas.list_service_quotas"] = denied("ListServiceQuotas")
    row = carry("post-rate", changes)
    assert row.result == "unknown"
    assert row.detail == "These credentials may not call ListServiceQuotas."


def test_a_table_that_the_module_did_not_create_is_named_and_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.answers |= GOOD
    monkeypatch.setattr(world, "outputs", replace(world.outputs, users_table="people"))
    check = next(check for check in CHECKS if check.name == "recovery")
    row = asyncio.run(carry_out(check, world, []))
    assert row.result == "held"
    assert "people" in row.detail


def test_alarms_in_alarm_are_named() -> None:
    found = [alarm(name, "ALARM" if name == "undeliverable" else "OK") for name in account.PAGING_ALARMS]
    row = carry("alarms", {"cloudwatch.describe_alarms": {"MetricAlarms": found}})
    assert row.result == "held"
    assert "undeliverable" in row.detail


def test_features_that_only_aws_has_are_unknown_on_an_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.answers |= GOOD
    monkeypatch.setattr(world, "outputs", replace(world.outputs, endpoint_url="http://127.0.0.1:1"))
    names = ("post-rate", "quotas", "lambda-concurrency", "plain-http", "alarms", "traces")
    for check in account.CHECKS:
        row = asyncio.run(carry_out(check, world, []))
        assert row.result == ("unknown" if check.name in names else "held"), row
