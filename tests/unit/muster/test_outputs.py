"""Outputs: where they are read from, and which endpoint their boto3 clients use."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from muster.cli.options import resolve_outputs
from muster.errors import OutputsError
from muster.outputs import Outputs
from tests.support.fake_terraform import FakeTerraform

FLAT: dict[str, Any] = {
    "region": "eu-west-1",
    "websocket_url": "wss://a1b2c3d4.execute-api.eu-west-1.amazonaws.com/live",
    "connections_endpoint": "https://a1b2c3d4.execute-api.eu-west-1.amazonaws.com/live",
    "broadcast_state_machine_arn": "arn:aws:states:eu-west-1:123456789012:stateMachine:muster-broadcast",
    "fanout_state_machine_arn": "arn:aws:states:eu-west-1:123456789012:stateMachine:muster-fanout",
    "offline_topic_arn": "arn:aws:sns:eu-west-1:123456789012:muster-offline",
    "offline_queue_url": "https://sqs.eu-west-1.amazonaws.com/123456789012/muster-offline",
    "offline_queue_arn": "arn:aws:sqs:eu-west-1:123456789012:muster-offline",
    "connections_table": "muster-connections",
    "users_table": "muster-users",
    "messages_table": "muster-messages",
    "shelters_table": "muster-shelters",
    "jwt_issuer": "muster",
    "jwt_audience": "muster",
    "log_groups": {"connect": "/aws/lambda/muster-connect"},
}
NESTED = {name: {"value": value, "type": "string", "sensitive": False} for name, value in FLAT.items()}
LOCAL = Outputs.parse(FLAT, source="test", endpoint_url="http://127.0.0.1:4566")


class TestReading:
    def test_what_terraform_prints_and_what_up_prints_mean_the_same(self, tmp_path: Path) -> None:
        outputs = Outputs.parse(NESTED, source="terraform output -json")
        path = tmp_path / "outputs.json"
        path.write_text(json.dumps(outputs.to_dict()))
        assert Outputs.read(path) == outputs
        assert outputs.log_groups == {"connect": "/aws/lambda/muster-connect"}

    def test_a_status_contains_outputs(self) -> None:
        status = {"phase": "ready", "endpoint_url": "http://127.0.0.1:4566", "outputs": LOCAL.to_dict()}
        assert Outputs.parse(status, source="test") == LOCAL

    def test_the_status_of_a_stack_that_is_down_says_so(self) -> None:
        with pytest.raises(OutputsError, match="not up") as caught:
            Outputs.parse({"phase": "down", "outputs": None}, source="test")
        assert "muster up" in str(caught.value.fix)

    def test_the_endpoint_of_a_local_stack_survives_a_round_trip(self) -> None:
        assert Outputs.parse(LOCAL.to_dict(), source="test").endpoint_url == "http://127.0.0.1:4566"

    def test_absent_and_null_optional_outputs_are_none(self) -> None:
        assert Outputs.parse(FLAT, source="test").jwt_secret_arn is None
        null = {**NESTED, "jwt_secret_arn": {"value": None, "type": "string"}}
        assert Outputs.parse(null, source="test").jwt_secret_arn is None

    def test_outputs_this_version_does_not_know_are_ignored(self) -> None:
        assert Outputs.parse({**FLAT, "dashboard_url": "https://..."}, source="test").region == "eu-west-1"

    def test_one_error_names_everything_missing(self) -> None:
        partial = {name: value for name, value in FLAT.items() if name not in {"region", "users_table"}}
        with pytest.raises(OutputsError, match=r"^outputs\.json lacks .*: region, users_table\.\n"):
            Outputs.parse(partial, source="outputs.json")

    @pytest.mark.parametrize("text", ["", "not json", "[]", '"text"'])
    def test_a_file_with_anything_else_is_an_error_that_names_it(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "outputs.json"
        path.write_text(text)
        with pytest.raises(OutputsError, match=r"outputs\.json"):
            Outputs.read(path)

    def test_a_missing_file_is_an_error_that_says_how_to_write_it(self, tmp_path: Path) -> None:
        with pytest.raises(OutputsError) as caught:
            Outputs.read(tmp_path / "missing.json")
        assert "terraform output -json" in str(caught.value.fix)

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_a_file_is_read_in_the_encoding_that_it_has(self, tmp_path: Path, encoding: str) -> None:
        path = tmp_path / "outputs.json"
        path.write_text(json.dumps(NESTED), encoding=encoding)  # as PowerShell redirects it
        assert Outputs.read(path) == Outputs.parse(NESTED, source="test")

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80", b"\x00"])
    def test_a_file_that_is_no_text_is_an_error_that_names_it(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "outputs.json"
        path.write_bytes(content)
        with pytest.raises(OutputsError, match=r"outputs\.json"):
            Outputs.read(path)

    def test_dash_reads_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(NESTED)))
        assert Outputs.read(Path("-")) == Outputs.parse(NESTED, source="test")

    def test_a_directory_is_asked_with_terraform(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = FakeTerraform(tmp_path / "bin")
        fake.says("output", lines=[json.dumps(NESTED)])
        monkeypatch.setenv("PATH", fake.path())
        assert Outputs.read(tmp_path) == Outputs.parse(NESTED, source="test")
        assert f"-chdir={tmp_path}" in fake.calls("output")[0]["arguments"]


class TestSelection:
    def test_named_outputs_are_used(self, tmp_path: Path) -> None:
        path = tmp_path / "outputs.json"
        path.write_text(json.dumps(NESTED))
        assert resolve_outputs(path, tmp_path / "no-stack").region == "eu-west-1"

    def test_the_environment_names_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "outputs.json"
        path.write_text(json.dumps(NESTED))
        monkeypatch.setenv("MUSTER_OUTPUTS", str(path))
        assert Outputs.find(state_dir=tmp_path / "no-stack").region == "eu-west-1"

    def test_without_any_stack_the_error_says_both_ways_out(self, tmp_path: Path) -> None:
        with pytest.raises(OutputsError, match="no stack to talk to") as caught:
            resolve_outputs(None, tmp_path / "no-stack")
        assert "muster up" in str(caught.value.fix)
        assert "--outputs" in str(caught.value.fix)
        assert caught.value.exit_code == 2


class TestClients:
    def test_local_clients_ignore_every_aws_setting_of_the_user(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        configuration = tmp_path / "config"
        configuration.write_text("[default]\nregion = ap-south-1\nendpoint_url = https://example.org\n")
        for name, value in {
            "AWS_PROFILE": "does-not-exist",
            "AWS_CONFIG_FILE": str(configuration),
            "AWS_ACCESS_KEY_ID": "AKIAREAL",
            "AWS_SECRET_ACCESS_KEY": "real",
            "AWS_SESSION_TOKEN": "real",
            "AWS_REGION": "ap-south-1",
            "AWS_ENDPOINT_URL_DYNAMODB": "https://example.org",
            "HTTP_PROXY": "http://proxy.example.org:3128",
        }.items():
            monkeypatch.setenv(name, value)
        client = LOCAL.client("dynamodb")
        credentials = client._request_signer._credentials
        assert client.meta.endpoint_url == "http://127.0.0.1:4566"
        assert client.meta.region_name == "eu-west-1"
        assert (credentials.access_key, credentials.secret_key, credentials.token) == ("test", "test", None)
        assert client.meta.config.proxies == {}

    def test_aws_clients_use_the_ordinary_chain_in_the_stacks_region(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAREAL")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "real")
        client: Any = Outputs.parse(FLAT, source="test").client("stepfunctions")
        assert client.meta.endpoint_url == "https://states.eu-west-1.amazonaws.com"
        assert client._request_signer._credentials.access_key == "AKIAREAL"
