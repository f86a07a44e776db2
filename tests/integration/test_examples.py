"""The examples of the module plan against AWS's APIs, as their reader's first command does."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster import Stack
from muster.local import repository
from muster.local.bundle import host_architecture
from muster.local.terraform import Terraform
from tests.support.deployment import Deployment, unique
from tests.support.examples import EXAMPLES, copy_of


@pytest.fixture(scope="module")
def account(deployment: Deployment) -> Iterator[None]:
    """The tables and the hosted zone that examples find in their account and region."""
    dynamodb = deployment.outputs.client("dynamodb", region_name="eu-west-1")
    for table, key in {"people": "userId", "staff": "personId"}.items():
        dynamodb.create_table(
            TableName=table,
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
        )
    route53 = deployment.outputs.client("route53")
    zone = route53.create_hosted_zone(Name="example.org", CallerReference=unique("zone"))["HostedZone"]["Id"]
    yield
    route53.delete_hosted_zone(Id=zone)
    for table in ("people", "staff"):
        dynamodb.delete_table(TableName=table)


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("example", EXAMPLES)
def test_plans_only_additions(example: str, stack: Stack, deployment: Deployment, tmp_path: Path) -> None:
    folder = copy_of(example, tmp_path)
    shutil.copytree(stack.state_dir / "bundle", tmp_path / "build")
    # The only change: this bundle is built for this machine.
    override = {"module": {"muster": {"lambda_architecture": host_architecture()}}}
    (folder / "test_override.tf.json").write_text(json.dumps(override))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))}
    # As `eval "$(muster env)"` sets them.
    set_ = {name: value for name, value in deployment.outputs.environment().items() if value is not None}
    terraform = Terraform(folder, environment={**kept, **set_})
    terraform.find_provider(repository.cache_dir())
    terraform.init()

    changes = terraform.plan()

    # Data that depends on what is created is read during the apply.
    assert {change.action for change in changes} - {"read"} == {"create"}
    assert "module.muster.aws_apigatewayv2_stage.this" in {change.address for change in changes}
