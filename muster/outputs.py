"""The Terraform outputs of a deployment, typed, and boto3 clients for it.

Outputs come from the running local stack, from a file that `terraform output -json` wrote (`-` is standard
input), or from a Terraform directory, in which Terraform is run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from muster.errors import OutputsError

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_dynamodb import DynamoDBServiceResource
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_sns import SNSClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_stepfunctions import SFNClient

LOCAL_CREDENTIALS: Mapping[str, str] = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
"""Keys that every local AWS emulator accepts. The user's own credentials are never sent to an emulator."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of one deployment. `endpoint_url` is set for a local stack only; None means AWS."""

    region: str
    websocket_url: str
    connections_endpoint: str
    broadcast_state_machine_arn: str
    fanout_state_machine_arn: str
    offline_topic_arn: str
    offline_queue_url: str
    offline_queue_arn: str
    connections_table: str
    users_table: str
    messages_table: str
    shelters_table: str
    jwt_issuer: str
    jwt_audience: str
    jwt_algorithms: Sequence[str] = field(default_factory=lambda: ["HS256"])  # 0.1.0 has no such output
    jwt_secret_arn: str | None = None
    publisher_policy_json: str = ""
    log_groups: Mapping[str, str] = field(default_factory=dict)
    function_names: Mapping[str, str] = field(default_factory=dict)
    endpoint_url: str | None = None

    @classmethod
    def parse(cls, document: object, *, source: str, endpoint_url: str | None = None) -> Self:
        """Read what `terraform output -json`, `muster outputs --json` or `muster status --json` prints.

        Those are {name: {"value": ...}}, {name: value}, and {"phase": ..., "outputs": {name: value}}.
        Unknown outputs are ignored. One `OutputsError` names every missing output.
        """
        if isinstance(document, dict) and {"phase", "outputs"} <= document.keys():
            document = document["outputs"]
            if document is None:
                raise OutputsError(
                    f"{source} is the status of a local stack that is not up.",
                    fix="Run `muster up`, and write the file again.",
                )
        if not isinstance(document, dict):
            raise OutputsError(
                f"{source} does not contain a JSON object of Terraform outputs.",
                fix="Write it with `terraform output -json` or `muster outputs --json`.",
            )
        values = {
            name: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
            for name, entry in document.items()
        }
        known = dataclasses.fields(cls)
        required = [f.name for f in known if f.default is f.default_factory is dataclasses.MISSING]
        if missing := [name for name in required if not isinstance(values.get(name), str)]:
            raise OutputsError(
                f"{source} lacks these Terraform outputs: {', '.join(missing)}.",
                fix="Apply this version's terraform/ and export its outputs again.",
            )
        arguments = {f.name: values[f.name] for f in known if values.get(f.name) is not None}
        return cls(**{**arguments, "endpoint_url": endpoint_url or arguments.get("endpoint_url")})

    @classmethod
    def find(cls, source: Path | str | None = None, *, state_dir: Path | None = None) -> Outputs:
        """Read the outputs that `source` or the variable MUSTER_OUTPUTS names, as `read` does.

        Without either, return those of the running local stack. Raises `OutputsError`.
        """
        if source is not None or (source := os.environ.get("MUSTER_OUTPUTS")):
            return cls.read(Path(source))
        from muster.local import record, repository  # noqa: PLC0415 - only this form needs a local stack

        folder = (state_dir or repository.default_state_dir()).absolute()
        local = record.read(folder)
        running = local.running()
        if running and local.outputs:
            with suppress(OutputsError):
                return cls.parse(local.outputs, source=str(folder / record.RECORD))
        if running and local.phase == "ready":
            raise OutputsError(
                "The local stack was started by another version of Muster.",
                fix="Run `muster up`, which updates it.",
            )
        raise OutputsError(
            f"There is no stack to talk to: no local stack is up in {folder}, and no outputs were given.",
            fix="Run `muster up`. If a stack is up elsewhere, set MUSTER_STATE_DIR as `muster env` prints it "
            "there. For AWS name a file that `terraform output -json` wrote (--outputs, MUSTER_OUTPUTS).",
        )

    @classmethod
    def read(cls, source: Path) -> Self:
        """Read outputs from a JSON file, from standard input (`-`), or from a Terraform directory."""
        if source == Path("-"):
            return cls.parse(_json(sys.stdin.read(), "Standard input"), source="Standard input")
        if source.is_dir():
            from muster.local.terraform import output  # noqa: PLC0415 - only this form needs Terraform

            return cls.parse(output(source), source=f"The Terraform state of {source}")
        try:
            # As bytes, because PowerShell writes UTF-16, which json.loads recognises.
            text = source.read_bytes()
        except OSError as error:
            raise OutputsError(
                f"The outputs file {source} cannot be read: {error}.",
                fix="Write it with `terraform output -json > FILE`.",
            ) from error
        return cls.parse(_json(text, str(source)), source=str(source))

    def to_dict(self) -> dict[str, Any]:
        """Return the flat JSON form that `muster outputs --json` prints and `read` accepts."""
        return dataclasses.asdict(self)

    def environment(self) -> dict[str, str | None]:
        """Return environment variables that point any AWS SDK to this deployment; None means unset.

        Each output that is text becomes a variable MUSTER_NAME. A local stack adds its endpoint and test
        keys, and hides the user's own AWS settings. AWS adds its region, unsets what the variables of a
        local stack left in this process's environment, and the user's credentials apply.
        """
        values = {"AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region}
        own = {
            f"MUSTER_{name.upper()}": value
            for name, value in self.to_dict().items()
            if isinstance(value, str) and name not in ("region", "endpoint_url", "publisher_policy_json")
        }
        if self.endpoint_url is None:
            return {**_left_by_a_local_stack(), **values, **own}
        from muster.local.emulator import local_environment  # noqa: PLC0415 - only this form needs it

        local = {**local_environment(self.endpoint_url), **values}
        return {**local, "AWS_PROFILE": None, "AWS_SESSION_TOKEN": None, **own}

    def session(self) -> boto3.Session:
        """Return a boto3 session in this deployment's region.

        For AWS it uses the usual credential chain. For a local stack it uses `LOCAL_CREDENTIALS` and ignores
        the user's AWS profiles, configuration files and proxies, which could send its requests elsewhere.
        """
        import boto3  # noqa: PLC0415 - takes a quarter of a second, which `muster --help` should not
        import botocore.session  # noqa: PLC0415 - slow as well

        if self.endpoint_url is None:
            return boto3.Session(region_name=self.region)
        from botocore.config import Config  # noqa: PLC0415 - slow as well

        isolated = botocore.session.Session(
            session_vars={
                "profile": (None, None, None, None),
                "config_file": (None, None, os.devnull, None),
                "credentials_file": (None, None, os.devnull, None),
            }
        )
        isolated.set_default_client_config(Config(proxies={}))
        return boto3.Session(botocore_session=isolated, region_name=self.region, **LOCAL_CREDENTIALS)

    @overload
    def client(self, service: Literal["lambda"], **options: Any) -> LambdaClient: ...
    @overload
    def client(self, service: Literal["logs"], **options: Any) -> CloudWatchLogsClient: ...
    @overload
    def client(self, service: Literal["secretsmanager"], **options: Any) -> SecretsManagerClient: ...
    @overload
    def client(self, service: Literal["sns"], **options: Any) -> SNSClient: ...
    @overload
    def client(self, service: Literal["sqs"], **options: Any) -> SQSClient: ...
    @overload
    def client(self, service: Literal["stepfunctions"], **options: Any) -> SFNClient: ...
    @overload
    def client(self, service: str, **options: Any) -> Any: ...

    def client(self, service: str, **options: Any) -> Any:
        """Return a boto3 client for `service` that talks to this deployment.

        A type checker that has boto3-stubs knows the clients of the services that Muster uses.
        """
        make: Any = self.session().client  # the service is a variable, which the stubs' overloads do not take
        return make(service, endpoint_url=self.endpoint_url, **options)

    @overload
    def resource(self, service: Literal["dynamodb"]) -> DynamoDBServiceResource: ...
    @overload
    def resource(self, service: str) -> Any: ...

    def resource(self, service: str) -> Any:
        """Return a boto3 resource for `service` that talks to this deployment."""
        make: Any = self.session().resource  # as above
        return make(service, endpoint_url=self.endpoint_url)


def _left_by_a_local_stack() -> dict[str, None]:
    """Return what an earlier `eval "$(muster env)"` of a local stack set. The user's own settings stay."""
    from muster.local.emulator import local_environment  # noqa: PLC0415 - only this form needs it

    fixed = {
        name: value
        for name, value in local_environment("").items()
        if name not in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
    }
    if any(os.environ.get(name) != value for name, value in fixed.items()):
        return {}
    return dict.fromkeys((*fixed, "AWS_ENDPOINT_URL", "MUSTER_STATE_DIR"))


def _json(text: str | bytes, source: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise OutputsError(
            f"{source} is not JSON: {error}.",
            fix="Write it with `terraform output -json` or `muster outputs --json`.",
        ) from error
