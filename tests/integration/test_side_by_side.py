"""Two deployments in one account and region, the second of which uses what the account has already."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from muster import Outputs, Stack
from tests.support.deployment import VARIABLES, Deployment, unique, users_of
from tests.support.waiting import until

Find = Callable[[Outputs, str], list[str]]


def _listed(service: str, operation: str, key: str, name: str | None = None) -> Find:
    """Find by name what an operation lists under `key`; without `name`, it lists names."""

    def find(outputs: Outputs, prefix: str) -> list[str]:
        client = outputs.client(service)
        if client.can_paginate(operation):
            pages = client.get_paginator(operation).paginate()
        else:
            pages = [getattr(client, operation)()]
        listed = [entry[name] if name else entry for page in pages for entry in page.get(key, ())]
        return [entry for entry in listed if prefix in entry]

    return find


INVENTORY: dict[str, Find] = {
    "aws_apigatewayv2_api": _listed("apigatewayv2", "get_apis", "Items", "Name"),
    "aws_cloudwatch_dashboard": _listed("cloudwatch", "list_dashboards", "DashboardEntries", "DashboardName"),
    "aws_cloudwatch_log_group": _listed("logs", "describe_log_groups", "logGroups", "logGroupName"),
    "aws_dynamodb_table": _listed("dynamodb", "list_tables", "TableNames"),
    "aws_iam_role": _listed("iam", "list_roles", "Roles", "RoleName"),
    "aws_lambda_function": _listed("lambda", "list_functions", "Functions", "FunctionName"),
    "aws_lambda_layer_version": _listed("lambda", "list_layers", "Layers", "LayerName"),
    "aws_secretsmanager_secret": _listed("secretsmanager", "list_secrets", "SecretList", "Name"),
    "aws_sfn_state_machine": _listed("stepfunctions", "list_state_machines", "stateMachines", "name"),
    "aws_sns_topic": _listed("sns", "list_topics", "Topics", "TopicArn"),
    "aws_sns_topic_subscription": _listed("sns", "list_subscriptions", "Subscriptions", "TopicArn"),
    "aws_sqs_queue": _listed("sqs", "list_queues", "QueueUrls"),
}
"""How to find, in the account itself, every kind of thing that the module makes."""

PARTS = {
    *("aws_apigatewayv2_deployment", "aws_apigatewayv2_integration", "aws_apigatewayv2_route"),
    *("aws_apigatewayv2_route_response", "aws_apigatewayv2_stage"),
    *("aws_iam_role_policy", "aws_lambda_alias", "aws_lambda_permission"),
    "aws_secretsmanager_secret_version",
    "aws_sns_topic_policy",
}
"""What is part of something else, and goes with it."""


@dataclass(frozen=True)
class Belongings:
    """What an account has already, and a deployment is given."""

    table: str
    table_arn: str
    queue_url: str
    queue_arn: str
    key_arn: str

    def variables(self) -> dict[str, Any]:
        """Return the Terraform variables that name them."""
        alerts = {
            "protocol": "sqs",
            "endpoint": self.queue_arn,
            "filter_policy": json.dumps({"type": ["alert"]}),
            "raw_message_delivery": True,
        }
        return {
            "kms_key_arn": self.key_arn,
            "existing_tables": {"users": {"arn": self.table_arn, "kms_key_arn": self.key_arn}},
            "offline_subscribers": {"alerts": alerts},
        }

    def admit(self, outputs: Outputs) -> None:
        """Let a deployment's topic send to the queue, whose policy is its owner's to write."""
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": self.queue_arn,
            "Condition": {"ArnEquals": {"aws:SourceArn": outputs.offline_topic_arn}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        outputs.client("sqs").set_queue_attributes(QueueUrl=self.queue_url, Attributes={"Policy": policy})


@pytest.fixture
def belongings(deployment: Deployment) -> Iterator[Belongings]:
    dynamodb, kms = (deployment.outputs.client(name) for name in ("dynamodb", "kms"))
    sqs = deployment.outputs.client("sqs")
    key_arn = kms.create_key()["KeyMetadata"]["Arn"]
    queue_url = sqs.create_queue(QueueName=unique("subscriber"))["QueueUrl"]
    queue = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])["Attributes"]
    table = dynamodb.create_table(
        TableName=unique("people"),
        KeySchema=[{"AttributeName": "userId", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "userId", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        SSESpecification={"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": key_arn},
    )["TableDescription"]
    yield Belongings(table["TableName"], table["TableArn"], queue_url, queue["QueueArn"], key_arn)
    dynamodb.delete_table(TableName=table["TableName"])
    sqs.delete_queue(QueueUrl=queue_url)
    kms.schedule_key_deletion(KeyId=key_arn, PendingWindowInDays=7)


@pytest.fixture
def second(stack: Stack, belongings: Belongings) -> Iterator[Stack]:
    """A deployment beside the one under test, on the same endpoint; not up yet."""
    variables = VARIABLES | belongings.variables() | {"name_prefix": unique("two"), "snap_start": True}
    with TemporaryDirectory(prefix="muster-tests-") as folder:
        endpoint = stack.status().require_endpoint()
        second = Stack(Path(folder) / "stack", endpoint=endpoint, variables=variables)
        try:
            yield second
        finally:
            second.down()


def test_two_deployments_run_side_by_side_and_destroy_leaves_nothing_of_one(
    deployment: Deployment, second: Stack, belongings: Belongings
) -> None:
    """One test, since a deployment takes a minute to make and is gone at the end."""
    other = Deployment(second.up())
    prefix = other.outputs.connections_table.removesuffix("-connections")
    belongings.admit(other.outputs)

    # Applied with all that the account has already, the module still agrees with what it made.
    assert second.plan() == []
    assert other.outputs.users_table == belongings.table

    # Each gets only its own, and a subscriber what its filter selects.
    user = other.user("first_responder")
    quiet, alert = (other.broadcast({"users": [user.user_id]}, type=type) for type in ("broadcast", "alert"))
    for receipt in (quiet, alert):
        assert users_of(other.notifications(receipt["id"])) == [user.user_id]
        assert deployment.notifications(receipt["id"]) == []
    assert deployment.queued(f"user#{user.user_id}") == []
    sqs = other.outputs.client("sqs")
    [heard] = until(
        lambda: sqs.receive_message(QueueUrl=belongings.queue_url, MaxNumberOfMessages=10).get("Messages"),
        "the subscriber to hear of the alert",
    ) or [{}]
    assert json.loads(heard["Body"])["message"]["id"] == alert["id"]

    # Everything that was made is gone, and nothing that was there before.
    state = json.loads((second.state_dir / "terraform.tfstate").read_text())
    kinds = {entry["type"] for entry in state["resources"] if entry["mode"] == "managed"}
    assert kinds - PARTS == INVENTORY.keys(), "every kind of thing must be looked for"
    assert [kind for kind, find in INVENTORY.items() if not find(deployment.outputs, prefix)] == []
    second.down()
    left = {kind: find(deployment.outputs, prefix) for kind, find in INVENTORY.items()}
    assert {kind: names for kind, names in left.items() if names} == {}
    assert INVENTORY["aws_dynamodb_table"](deployment.outputs, belongings.table) == [belongings.table]

    # The first one is at work as before.
    user = deployment.user()
    receipt = deployment.broadcast({"users": [user.user_id]})
    assert users_of(deployment.notifications(receipt["id"])) == [user.user_id]
