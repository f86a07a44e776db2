"""Terraform agrees with what it made, and changes no more than what an upgrade touches.

Planned with -refresh=false, against the one stack of the run: the first test has shown that nothing drifts.
"""

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from muster import Stack
from muster.local import emulator
from muster.local.terraform import Terraform, find_binary
from tests.support.deployment import Deployment

Actions = Mapping[str, list[str]]

FUNCTIONS = ["accept", "connect", "default", "deliver", "disconnect", "offline"]
UPDATE, CREATE, REPLACE_AFTER = ["update"], ["create"], ["create", "delete"]


def test_second_plan_finds_nothing_to_change(stack: Stack) -> None:
    """Nothing is excused: the module has no resource that the emulator misreports."""
    assert stack.plan() == []


def test_secret_is_in_no_state_file(stack: Stack, deployment: Deployment) -> None:
    states = list(stack.state_dir.glob("terraform.tfstate*"))
    assert states
    assert not [path.name for path in states if deployment.jwt_secret in path.read_text()]


class Upgrade:
    """A copy of the deployed module, to be changed and planned against what is deployed."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._folder = folder / "source"
        self._state_dir = stack.state_dir
        shutil.copytree(stack.state_dir / "source", self._folder)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))}
        self._environment = {
            **kept,
            **emulator.local_environment(stack.status().require_endpoint()),
            "TF_DATA_DIR": str(stack.state_dir / "terraform-data"),
        }

    def replace(self, file: str, before: str, after: str) -> None:
        """Change a file of the module, or beside it, as a later version might."""
        path = self._folder / file
        text = path.read_text()
        assert text.count(before) == 1, f"{file} has no single {before!r}"
        path.write_text(text.replace(before, after))

    def plan(self, *arguments: str) -> Actions:
        """What an apply would do to each resource that it would touch, in Terraform's own order."""
        module, plan = self._folder / "terraform", self._folder / "plan"
        terraform = Terraform(module, environment=self._environment)
        variables = f"-var-file={self._state_dir / 'variables.tfvars.json'}"
        terraform.plan("-refresh=false", f"-out={plan}", variables, *arguments)
        show = [find_binary().path, f"-chdir={module}", "show", "-json", str(plan)]
        shown = subprocess.run(show, env=self._environment, capture_output=True, check=True).stdout
        changes = {
            change["address"]: change["change"]["actions"] for change in json.loads(shown)["resource_changes"]
        }
        return {
            address: actions for address, actions in changes.items() if actions not in (["no-op"], ["read"])
        }


@pytest.fixture
def upgrade(stack: Stack, tmp_path: Path) -> Upgrade:
    return Upgrade(stack, tmp_path)


@contextmanager
def added_to_the_code(bundle: Path, name: str) -> Iterator[None]:
    """Put a bundle with one more file where the deployed one is: the path of the code is part of the plan."""
    originals = {path: path.read_bytes() for path in (bundle / "functions.zip", bundle / "bundle.json")}
    try:
        with zipfile.ZipFile(bundle / "functions.zip", "a") as code:
            code.writestr(name, "{}")
        manifest = json.loads((bundle / "bundle.json").read_text())
        manifest["sha256"]["functions.zip"] = hashlib.sha256(
            (bundle / "functions.zip").read_bytes()
        ).hexdigest()
        (bundle / "bundle.json").write_text(json.dumps(manifest))
        yield
    finally:
        for path, content in originals.items():
            path.write_bytes(content)


@pytest.mark.parametrize("name", ["functions/later.py", "schemas/later.schema.json"])
def test_code_and_schemas_update_the_functions_alone(stack: Stack, upgrade: Upgrade, name: str) -> None:
    with added_to_the_code(stack.state_dir / "bundle", name):
        changes = upgrade.plan()

    assert changes == {f'module.function["{name}"].aws_lambda_function.this': UPDATE for name in FUNCTIONS}


def test_state_updates_its_machine_alone(upgrade: Upgrade) -> None:
    upgrade.replace("statemachines/broadcast.asl.json", '"TimeoutSeconds": 15', '"TimeoutSeconds": 16')

    assert upgrade.plan() == {'aws_sfn_state_machine.this["broadcast"]': UPDATE}


def test_index_updates_its_table_alone(upgrade: Upgrade) -> None:
    upgrade.replace("terraform/tables.tf", "AllIndex     = {", 'AllIndex     = { projection = "ALL",')

    assert upgrade.plan() == {'aws_dynamodb_table.this["connections"]': UPDATE}


def test_setting_updates_the_functions_that_read_it(upgrade: Upgrade) -> None:
    assert upgrade.plan("-var=connection_ttl_seconds=3600") == {
        f'module.function["{name}"].aws_lambda_function.this': UPDATE for name in ("connect", "default")
    }


def test_route_is_deployed_before_the_old_deployment_goes(upgrade: Upgrade) -> None:
    """So that no moment is without one, and clients that are connected stay."""
    upgrade.replace(
        "terraform/api.tf",
        '"$default"    = {',
        '"later" = { function = "default", replies = true }\n    "$default"    = {',
    )

    assert upgrade.plan() == {
        'aws_apigatewayv2_route.this["later"]': CREATE,
        'aws_apigatewayv2_integration.this["later"]': CREATE,
        'aws_apigatewayv2_route_response.this["later"]': CREATE,
        'aws_lambda_permission.route["later"]': CREATE,
        "aws_apigatewayv2_deployment.this": REPLACE_AFTER,
        "aws_apigatewayv2_stage.this": UPDATE,
    }


def test_api_gateway_may_invoke_the_functions_throughout_a_change_to_snap_start(upgrade: Upgrade) -> None:
    """Publishing the snapshots takes minutes, and the permissions of before serve until the aliases do."""
    changes = upgrade.plan("-var=snap_start=true")

    permissions = {address: actions for address, actions in changes.items() if "_permission." in address}
    assert permissions == {
        f'aws_lambda_permission.route["{route}"]': REPLACE_AFTER
        for route in ("$connect", "$default", "$disconnect")
    }
    assert {actions[0] for actions in changes.values()} == {"create", "update"}
