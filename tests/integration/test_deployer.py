"""docs/deployer-policy.json is enough to apply, change and destroy a deployment, and contains nothing else.

A user with only this policy runs Terraform against the emulator, which enforces it; the provider's own
log tells which actions it called for.
"""

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from muster import Stack
from muster.local import emulator, repository
from muster.local.terraform import Terraform
from tests.support import ROOT
from tests.support.deployment import Deployment, refused, unique

POLICY = (ROOT / "docs" / "deployer-policy.json").read_text()

EMULATOR_ONLY = [
    # For these MiniStack does not find the resource in the request and asks for any; AWS finds it.
    *(f"dynamodb:{action}" for action in ("ListTagsOfResource", "TagResource", "UntagResource")),
    *(f"sns:{action}" for action in ("ListTagsForResource", "TagResource", "UntagResource")),
    *(f"states:{action}" for action in ("ListTagsForResource", "TagResource", "UntagResource")),
    *("cloudwatch:DeleteDashboards", "cloudwatch:GetDashboard", "cloudwatch:PutDashboard"),
    "lambda:CreateFunction",
    # The names that it has for GetAlias and GetLayerVersion.
    *("lambda:ListAliases", "lambda:ListLayers"),
]

_ON_AWS_ONLY = "alarms, saved queries and the trace group are made on AWS only"

NOT_CALLED = {
    "iam:PassRole": "asked for by AWS, not by MiniStack, when a function or a machine is given its role",
    "cloudwatch:DeleteAlarms": _ON_AWS_ONLY,
    "cloudwatch:DescribeAlarms": _ON_AWS_ONLY,
    "cloudwatch:ListTagsForResource": _ON_AWS_ONLY,
    "cloudwatch:PutMetricAlarm": _ON_AWS_ONLY,
    "cloudwatch:TagResource": _ON_AWS_ONLY,
    "cloudwatch:UntagResource": _ON_AWS_ONLY,
    "logs:DeleteQueryDefinition": _ON_AWS_ONLY,
    "logs:DescribeQueryDefinitions": _ON_AWS_ONLY,
    "logs:PutQueryDefinition": _ON_AWS_ONLY,
    "xray:CreateGroup": _ON_AWS_ONLY,
    "xray:DeleteGroup": _ON_AWS_ONLY,
    "xray:GetGroup": _ON_AWS_ONLY,
    "xray:ListTagsForResource": _ON_AWS_ONLY,
    "xray:TagResource": _ON_AWS_ONLY,
    "xray:UntagResource": _ON_AWS_ONLY,
    "xray:UpdateGroup": _ON_AWS_ONLY,
    # [Using tags on Lambda functions]
    "lambda:ListTags": "asked for by AWS, not by MiniStack, before GetFunction shows a function's tags",
}
"""What the policy allows although Terraform does not call for it here, and why."""

SERVICES = {
    "CloudWatch": "cloudwatch",
    "CloudWatch Logs": "logs",
    "DynamoDB": "dynamodb",
    "IAM": "iam",
    "KMS": "kms",
    "Lambda": "lambda",
    "SFN": "states",
    "SNS": "sns",
    "SQS": "sqs",
    "Secrets Manager": "secretsmanager",
    "XRay": "xray",
}
"""The provider's name of a service, and IAM's."""

APIS = botocore.session.get_session().get_service_model("apigatewayv2")

UNCONDITIONAL = {"STS GetCallerIdentity"}
"""What every caller may do."""


@dataclass(frozen=True)
class Deployer:
    """A user with the policy, and what Terraform called for on their behalf."""

    credentials: dict[str, str]
    called: set[str]
    user: str


@pytest.fixture(scope="module")
def deployer(
    stack: Stack, deployment: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployer]:
    """Apply, change and destroy a second copy of the module as a user with only the policy."""
    prefix = unique("second")
    user = unique("deployer")
    boundary = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    iam = deployment.iam
    account = iam.create_user(UserName=user)["User"]["Arn"].split(":")[4]
    key = iam.create_access_key(UserName=user)["AccessKey"]
    emulator_only = {"Effect": "Allow", "Action": EMULATOR_ONLY, "Resource": "*"}
    for name, policy in {"deployer": _rendered(prefix, account), "emulator": _policy(emulator_only)}.items():
        iam.put_user_policy(UserName=user, PolicyName=name, PolicyDocument=json.dumps(policy))
    boundary_arn = iam.create_policy(
        PolicyName=unique("bound"), PolicyDocument=json.dumps(_policy(boundary))
    )["Policy"]["Arn"]
    credentials = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    try:
        folder = tmp_path_factory.mktemp("second")
        called = _deploy(stack, deployment, credentials, prefix, boundary_arn, folder)
        yield Deployer(credentials, called, user)
    finally:
        iam.delete_policy(PolicyArn=boundary_arn)
        for name in ("deployer", "emulator"):
            iam.delete_user_policy(UserName=user, PolicyName=name)
        iam.delete_access_key(UserName=user, AccessKeyId=key["AccessKeyId"])
        iam.delete_user(UserName=user)


def _policy(statement: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [statement]}


def _rendered(prefix: str, account: str) -> dict[str, Any]:
    values = {"<prefix>": prefix, "<region>": emulator.REGION, "<account>": account}
    policy: dict[str, Any] = json.loads(re.sub("<[a-z]+>", lambda match: values[match[0]], POLICY))
    return policy


def _deploy(
    stack: Stack,
    deployment: Deployment,
    credentials: dict[str, str],
    prefix: str,
    boundary_arn: str,
    folder: Path,
) -> set[str]:
    """Apply, change and destroy; return the actions that Terraform called for."""
    endpoint = stack.status().require_endpoint()
    for name in ("source", "bundle"):
        shutil.copytree(stack.state_dir / name, folder / name)
    backend = {"terraform": {"backend": {"local": {"path": str(folder / "terraform.tfstate")}}}}
    (folder / "source" / "terraform" / "backend_override.tf.json").write_text(json.dumps(backend))
    log = folder / "provider.log"
    terraform = Terraform(
        folder / "source" / "terraform",
        environment={
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))
        }
        | emulator.local_environment(endpoint)
        | credentials
        | {
            "TF_DATA_DIR": str(folder / "data"),
            "TF_LOG_PROVIDER": "DEBUG",
            "TF_LOG_PATH": str(log),
        },
    )
    terraform.find_provider(repository.cache_dir())
    terraform.init()

    created = json.loads((stack.state_dir / "variables.tfvars.json").read_text()) | {
        "name_prefix": prefix,
        "bundle_dir": str(folder / "bundle"),
        "access_logs": True,
        "deletion_protection": True,
        "functions": {"deliver": {"reserved_concurrency": 5, "memory_mb": 1024}},
        "snap_start": True,
        "tags": {"team": "alerts"},
    }
    changed = created | {
        "deletion_protection": False,
        "functions": {},
        "log_retention_days": 60,
        "message_retention_days": 9,
        "page_size": 9,
        "permissions_boundary_arn": boundary_arn,
        "tags": {"crew": "alerts"},
        "throttling_rate_limit": 9000,
    }
    terraform.apply(_var_file(folder, created))
    _change_code(folder / "bundle")
    _change_by_hand(deployment, prefix)
    terraform.apply(_var_file(folder, changed))
    terraform.destroy(_var_file(folder, changed))
    return _called(log.read_text())


def _change_by_hand(deployment: Deployment, prefix: str) -> None:
    """Change what an upgrade of the module may change, and no variable does; rotate the secret."""
    roles = deployment.iam.get_paginator("list_roles").paginate().search("Roles[].RoleName")
    (role,) = (name for name in roles if name.startswith(f"{prefix}-connect-"))
    trust = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    deployment.iam.update_assume_role_policy(RoleName=role, PolicyDocument=json.dumps(_policy(trust)))
    deployment.iam.update_role_description(RoleName=role, Description="Changed by hand.")

    secrets = deployment.outputs.client("secretsmanager")
    (secret,) = (
        each["ARN"]
        for page in secrets.get_paginator("list_secrets").paginate()
        for each in page["SecretList"]
        if each["Name"].startswith(f"{prefix}-jwt-")
    )
    secrets.update_secret(SecretId=secret, Description="Changed by hand.")
    secrets.put_secret_value(SecretId=secret, SecretString="rotated" * 8)

    sns = deployment.outputs.client("sns")
    topic = deployment.outputs.offline_topic_arn.rpartition(":")[0] + f":{prefix}-offline"
    (subscription,) = sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    sns.set_subscription_attributes(
        SubscriptionArn=subscription["SubscriptionArn"],
        AttributeName="RawMessageDelivery",
        AttributeValue="true",
    )


def _change_code(bundle: Path) -> None:
    functions, manifest = bundle / "functions.zip", bundle / "bundle.json"
    with zipfile.ZipFile(functions, "a") as code:
        code.writestr("changed.txt", "")
    built = json.loads(manifest.read_text())
    built["sha256"][functions.name] = hashlib.sha256(functions.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(built))


def _var_file(folder: Path, variables: dict[str, Any]) -> str:
    path = folder / "variables.json"
    path.write_text(json.dumps(variables))
    return f"-var-file={path}"


def _called(log: str) -> set[str]:
    """Return the IAM actions of the requests that the provider's log tells of."""
    actions = set()
    for record in re.split(r"^(?=\d{4}-\d\d-\d\dT)", log, flags=re.MULTILINE):
        if "HTTP Response Received" not in record:  # a request that carries code does not fit a record
            continue
        fields = dict(re.findall(r'(rpc\.service|rpc\.method)=("[^"]*"|\S+)', record))
        service, operation = fields["rpc.service"].strip('"'), fields["rpc.method"]
        if service == "ApiGatewayV2":  # whose actions are the methods of HTTP
            actions.add(f"apigateway:{APIS.operation_model(operation).http['method']}")
        elif f"{service} {operation}" not in UNCONDITIONAL:
            actions.add(f"{SERVICES[service]}:{operation}")
    return actions


def _statements() -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = json.loads(POLICY)["Statement"]
    return statements


def test_the_policy_is_enough_and_nothing_in_it_is_unused(deployer: Deployer) -> None:
    allowed = {action for statement in _statements() for action in statement["Action"]}
    assert deployer.called == allowed - set(NOT_CALLED)


def test_the_policy_reaches_no_other_deployment(deployer: Deployer, deployment: Deployment) -> None:
    def client(service: str) -> Any:
        return deployment.outputs.client(
            service, **{name.lower(): value for name, value in deployer.credentials.items()}
        )

    outputs = deployment.outputs
    trust = json.dumps(_policy({"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}))
    denied = {"AccessDenied", "AccessDeniedException", "AuthorizationError"}
    attempts: list[tuple[Any, dict[str, Any]]] = [
        (client("lambda").delete_function, {"FunctionName": outputs.function_names["connect"]}),
        (client("dynamodb").delete_table, {"TableName": outputs.users_table}),
        (client("dynamodb").scan, {"TableName": outputs.users_table}),
        (client("secretsmanager").get_secret_value, {"SecretId": outputs.jwt_secret_arn}),
        (client("sns").delete_topic, {"TopicArn": outputs.offline_topic_arn}),
        (
            client("stepfunctions").delete_state_machine,
            {"stateMachineArn": outputs.broadcast_state_machine_arn},
        ),
        (client("iam").create_role, {"RoleName": "mine", "AssumeRolePolicyDocument": trust}),
        (client("iam").create_access_key, {"UserName": deployer.user}),
    ]
    for call, arguments in attempts:
        assert refused(call, **arguments) in denied


def test_the_policy_fits_and_names_what_it_allows() -> None:
    # A managed policy's limit, which does not count white space [IAM and AWS STS quotas].
    assert len(re.sub(r"\s", "", POLICY)) <= 6144
    for statement in _statements():
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"])
        if statement["Sid"] == "TakesNoResource":
            continue
        # An API has an id of AWS's making instead of a name.
        named = "<region>" if statement["Sid"] == "WebSocketApi" else "<prefix>"
        assert all(named in resource for resource in statement["Resource"])
        if "iam:PassRole" in statement["Action"]:
            passed_to = statement["Condition"]["StringEquals"]["iam:PassedToService"]
            assert passed_to == ["lambda.amazonaws.com", "states.amazonaws.com"]
