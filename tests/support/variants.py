"""Changed copies of deployed functions and machines: a test breaks a copy, and the stack keeps working."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.deployment import Deployment, unique

Policy = dict[str, Any]

Grant = tuple[str, str]
"""An action, and a resource that it is allowed on."""


def grants(policy: Policy) -> list[Grant]:
    """Return everything that a policy allows, pair by pair."""
    return [
        (action, resource)
        for statement in policy["Statement"]
        for action in statement["Action"]
        for resource in statement["Resource"]
    ]


class Variants:
    """Creates functions and state machines beside the deployed ones, and deletes them."""

    def __init__(self, deployment: Deployment, functions_zip: Path) -> None:
        """`functions_zip` is the code that is deployed."""
        self._deployment = deployment
        self._functions_zip = functions_zip.read_bytes()
        self._functions: list[str] = []
        self._machines: list[str] = []
        self._roles: list[str] = []

    def function(
        self,
        original: str,
        *,
        environment: Mapping[str, str | None] | None = None,
        module: Path | None = None,
        timeout_seconds: int | None = None,
        without: Grant | None = None,
    ) -> str:
        """Copy a deployed function and return the copy's ARN.

        `environment` replaces variables, and None removes one. The `handler` of the file `module` is invoked
        instead of the deployed one, which it can import. `without` removes a permission.
        """
        lambda_ = self._deployment.functions
        name = self._deployment.outputs.function_names[original]
        deployed = lambda_.get_function_configuration(FunctionName=name)
        variables = deployed["Environment"]["Variables"] | (environment or {})
        made = lambda_.create_function(
            FunctionName=unique(name),
            Role=self._role(deployed["Role"], without) if without else deployed["Role"],
            Runtime=deployed["Runtime"],
            Architectures=deployed["Architectures"],
            MemorySize=deployed["MemorySize"],
            Timeout=timeout_seconds or deployed["Timeout"],
            Layers=[layer["Arn"] for layer in deployed["Layers"]],
            Handler=f"{module.stem}.handler" if module else deployed["Handler"],
            Environment={"Variables": {key: text for key, text in variables.items() if text is not None}},
            Code={"ZipFile": self._with(module) if module else self._functions_zip},
        )
        self._functions.append(made["FunctionName"])
        lambda_.get_waiter("function_active_v2").wait(FunctionName=made["FunctionName"])
        return str(made["FunctionArn"])

    def machine(self, original: str, changes: Mapping[str, str]) -> str:
        """Copy a deployed state machine, replacing text of its definition, and return the copy's ARN."""
        stepfunctions = self._deployment.stepfunctions
        deployed = stepfunctions.describe_state_machine(stateMachineArn=original)
        definition: str = deployed["definition"]
        for before, after in changes.items():
            assert before in definition, before
            definition = definition.replace(before, after)
        made = stepfunctions.create_state_machine(
            name=unique(deployed["name"]),
            definition=definition,
            roleArn=deployed["roleArn"],
            type=deployed["type"],
        )
        self._machines.append(made["stateMachineArn"])
        return str(made["stateMachineArn"])

    def broadcast(self, fanout_changes: Mapping[str, str], changes: Mapping[str, str] | None = None) -> str:
        """Return the ARN of a broadcast machine, changed itself if need be, with a changed fanout."""
        broadcast = self._deployment.outputs.broadcast_state_machine_arn
        fanout = self._deployment.outputs.fanout_state_machine_arn
        return self.machine(broadcast, {fanout: self.machine(fanout, fanout_changes), **(changes or {})})

    def arn_of(self, function: str) -> str:
        """Return the ARN of a deployed function."""
        name = self._deployment.outputs.function_names[function]
        configuration: dict[str, Any] = self._deployment.functions.get_function_configuration(
            FunctionName=name
        )
        return str(configuration["FunctionArn"])

    def role_of(self, function: str) -> str:
        """Return the ARN of a deployed function's role."""
        name = self._deployment.outputs.function_names[function]
        return str(self._deployment.functions.get_function_configuration(FunctionName=name)["Role"])

    def policy(self, role_arn: str) -> Policy:
        """Return the policies of a role as one; all of them must be its own."""
        role = role_arn.rpartition("/")[2]
        iam = self._deployment.iam
        assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
        policies = [
            iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
            for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
        ]
        return {"Statement": [statement for policy in policies for statement in policy["Statement"]]}

    def _role(self, original_arn: str, without: Grant) -> str:
        """Copy a role, less one permission, and return the copy's ARN."""
        iam = self._deployment.iam
        statements = [
            {"Effect": "Allow", "Action": action, "Resource": resource}
            for action, resource in grants(self.policy(original_arn))
            if (action, resource) != without
        ]
        trust = iam.get_role(RoleName=original_arn.rpartition("/")[2])["Role"]["AssumeRolePolicyDocument"]
        made = iam.create_role(RoleName=unique("less"), AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        self._roles.append(made["RoleName"])
        iam.put_role_policy(
            RoleName=made["RoleName"],
            PolicyName="permissions",
            PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": statements}),
        )
        return str(made["Arn"])

    def remove(self) -> None:
        """Delete what was made."""
        for machine in self._machines:
            self._deployment.stepfunctions.delete_state_machine(stateMachineArn=machine)
        for function in self._functions:
            self._deployment.functions.delete_function(FunctionName=function)
        for role in self._roles:
            self._deployment.iam.delete_role_policy(RoleName=role, PolicyName="permissions")
            self._deployment.iam.delete_role(RoleName=role)

    def _with(self, module: Path) -> bytes:
        archive = io.BytesIO(self._functions_zip)
        with zipfile.ZipFile(archive, "a") as code:
            code.write(module, module.name)
        return archive.getvalue()
