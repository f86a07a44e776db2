"""`muster verify --dry-run`: the steps of a run and the permissions that it needs. Calls nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from muster.outputs import Outputs
from muster.verify import limits
from muster.verify.aws import name_prefix
from muster.verify.check import Check
from muster.verify.durations import LONG_CONNECTIONS
from muster.verify.ledger import LEDGER
from muster.verify.targets import PREFIX, Consent


def steps(outputs: Outputs, clients: int, consent: Consent, checks: Iterable[Check]) -> list[str]:
    """Return a sentence for each step of a run."""
    named = ", ".join(check.name for check in checks)
    reach = "only the users of the run"
    if consent.scopes:
        reach += (
            f"; and, after a confirmation that shows their number, {' and '.join(sorted(consent.scopes))}"
        )
    subscribers = (
        "every subscription of the offline topic whose filter matches users of the run, "
        f"3 to {limits.WARM_UPS + 2} times"
        if consent.subscribers
        else "only an SQS queue of the run; the check fallback is left out when another filter matches"
    )
    own = outputs.users_table != f"{name_prefix(outputs)}-users"
    consented = (
        "as --write-users allows"
        if consent.users
        else "after a confirmation, because the table is your own"
        if own
        else "after a confirmation if the table has a stream"
    )
    return [
        f"Write a row ({LEDGER}, the run's id) with the names of everything that is made to "
        f"{outputs.messages_table}.",
        f"Make {clients + 6} users called {PREFIX}-... in {outputs.users_table}, "
        f"each with an address in example.org, {consented}: a system that reads this table or its stream "
        "sees them. Their role is the one with the fewest permissions.",
        f"Open {clients} clients and up to {LONG_CONNECTIONS} more connections at a time.",
        f"Broadcast a test to {reach}. All broadcasts except those of fallback have offline: never.",
        f"Notify {subscribers}.",
        f"Make an SQS queue, its subscription and a state machine, each called {PREFIX}-....",
        f"Run the checks {named}.",
        "Remove everything. Step Functions keeps executions of the broadcast machine for 90 days.",
    ]


def policy(outputs: Outputs, consent: Consent) -> dict[str, Any]:
    """Return the IAM policy that a run needs, with each action on the narrowest resource that AWS allows."""
    broadcast = outputs.broadcast_state_machine_arn
    partition, _, region, account = broadcast.split(":")[1:5]
    scope = f"{region}:{account}"
    prefix = name_prefix(outputs)

    def arn(service: str, resource: str) -> str:
        return f"arn:{partition}:{service}:{scope}:{resource}"

    def table(name: str) -> str:
        return arn("dynamodb", f"table/{name}")

    connections = table(outputs.connections_table)
    messages = table(outputs.messages_table)
    users = table(outputs.users_table)
    executions = broadcast.replace(":stateMachine:", ":execution:") + ":*"
    own_executions = arn("states", f"execution:{PREFIX}-*")
    functions = [arn("lambda", f"function:{name}") for name in sorted(outputs.function_names.values())]
    grants: list[tuple[list[str], list[str]]] = [
        (["dynamodb:DeleteItem", "dynamodb:PutItem", "dynamodb:UpdateItem"], [connections, users]),
        (
            ["dynamodb:DeleteItem", "dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem"],
            [messages],
        ),
        (["dynamodb:DescribeTable", "dynamodb:GetItem"], [users]),
        (["dynamodb:Query"], [f"{connections}/index/UserIndex"]),
        (["dynamodb:DescribeTimeToLive"], [connections, messages]),
        (
            ["dynamodb:DescribeContinuousBackups"],
            [connections, messages, users, table(outputs.shelters_table)],
        ),
        (["states:DescribeStateMachine"], [broadcast, outputs.fanout_state_machine_arn]),
        (["states:StartExecution"], [broadcast]),
        (["states:DescribeExecution"], [executions, own_executions]),
        (
            ["states:CreateStateMachine", "states:DeleteStateMachine", "states:StartExecution"],
            [arn("states", f"stateMachine:{PREFIX}-*")],
        ),
        (
            ["sns:GetTopicAttributes", "sns:ListSubscriptionsByTopic", "sns:Subscribe"],
            [outputs.offline_topic_arn],
        ),
        (
            [
                "sqs:CreateQueue",
                "sqs:DeleteMessage",
                "sqs:DeleteQueue",
                "sqs:GetQueueUrl",
                "sqs:ReceiveMessage",
            ],
            [arn("sqs", f"{PREFIX}-*")],
        ),
        (["sqs:GetQueueAttributes"], [outputs.offline_queue_arn]),
        (["apigateway:GET"], [f"arn:{partition}:apigateway:{region}::/account"]),
        (
            [
                "cloudwatch:DescribeAlarms",
                "lambda:GetAccountSettings",
                "logs:DescribeLogGroups",
                "servicequotas:ListServiceQuotas",
                "sns:GetSubscriptionAttributes",
                "sns:Unsubscribe",
                "xray:BatchGetTraces",
            ],
            ["*"],
        ),
    ]
    if functions:
        grants.append((["lambda:GetFunctionConfiguration"], functions))
    if outputs.jwt_secret_arn:
        grants.append((["secretsmanager:GetSecretValue"], [outputs.jwt_secret_arn]))
    if consent.scopes:
        grants.append((["dynamodb:Scan"], [connections]))
    statements: list[dict[str, Any]] = [
        {"Effect": "Allow", "Action": actions, "Resource": resources} for actions, resources in grants
    ]
    statements.append(
        {
            "Effect": "Allow",
            "Action": ["iam:PassRole"],
            "Resource": [f"arn:{partition}:iam::{account}:role/{prefix}-broadcast-*"],
            "Condition": {"StringEquals": {"iam:PassedToService": "states.amazonaws.com"}},
        }
    )
    return {"Version": "2012-10-17", "Statement": statements + _key_statements(outputs)}


def _key_statements(outputs: Outputs) -> list[dict[str, Any]]:
    """Return what a customer managed key needs. The outputs do not name the key, so each key is allowed.

    Its encryption context limits each use to the deployment, except for Lambda, as in terraform/kms.tf.
    """
    broadcast, fanout = outputs.broadcast_state_machine_arn, outputs.fanout_state_machine_arn
    partition, _, region, account = broadcast.split(":")[1:5]
    suffix = "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com"
    context = "kms:EncryptionContext:"
    tables = [outputs.connections_table, outputs.users_table, outputs.messages_table]
    uses: list[dict[str, list[str]]] = [
        {f"{context}aws:dynamodb:tableName": tables, "kms:ViaService": [f"dynamodb.{region}.{suffix}"]},
        {f"{context}aws:states:stateMachineArn": [broadcast, fanout]},
        {"kms:ViaService": [f"lambda.{region}.{suffix}"]},  # the environment of the functions
    ]
    if outputs.jwt_secret_arn:
        secret = {f"{context}SecretARN": [outputs.jwt_secret_arn]}
        uses.append(secret | {"kms:ViaService": [f"secretsmanager.{region}.{suffix}"]})
    return [
        {
            "Effect": "Allow",
            "Action": ["kms:Decrypt"],
            "Resource": [f"arn:{partition}:kms:{region}:{account}:key/*"],
            "Condition": {"StringEquals": use},
        }
        for use in uses
    ]
