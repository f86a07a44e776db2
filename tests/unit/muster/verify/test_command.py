"""The command `muster verify`: its confirmation, its output and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from muster.cli import verify as command
from muster.errors import MusterError
from muster.outputs import Outputs
from muster.verify import Consent, Report, Row
from tests.support.fake_world import OUTPUTS

runner = CliRunner()


def report(*results: Any, left: list[str] | None = None) -> Report:
    rows = [
        Row(f"check-{n}", "It [works].", "here", each, "Seen.", "Mend it." if each == "failed" else None, 0.1)
        for n, each in enumerate(results)
    ]
    return Report("muster-verify-1", rows, left or [])


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the run. `report` is its result; the other entries are the arguments that it got."""
    noted: dict[str, Any] = {"report": report("held"), "counts": {"all": 312, "admin": 7}}

    async def verify(outputs: Outputs, tokens: object, **options: Any) -> Report:
        noted.update(options, tokens=tokens)
        found: Report = noted["report"]
        return found

    monkeypatch.setattr(command, "run_checks", verify)
    monkeypatch.setattr(command, "tokens_for", lambda outputs, text: text or "secret")
    monkeypatch.setattr(command, "live_connections", lambda outputs: noted["counts"])
    monkeypatch.setattr(command, "role_to_test", lambda outputs: "admin")
    monkeypatch.setattr(command, "shared_users_table", lambda outputs: noted.get("shared"))
    return noted


@pytest.fixture
def outputs_file(tmp_path: Path) -> str:
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(OUTPUTS.to_dict()))
    return str(path)


def call(outputs_file: str, *arguments: str, typed: str = "") -> Result:
    return runner.invoke(command.app, ["--outputs", outputs_file, *arguments], input=typed)


@pytest.mark.parametrize(
    ("results", "left", "code"),
    [
        (["held", "held"], [], 0),
        (["held", "unknown"], [], 3),
        (["held", "unknown", "failed"], [], 1),
        (["held"], ["user muster-verify-1 (DeleteItem: AccessDenied)"], 1),
    ],
)
def test_the_exit_code_follows_the_result(
    given: dict[str, Any], outputs_file: str, results: list[str], left: list[str], code: int
) -> None:
    given["report"] = report(*results, left=left)
    ended = call(outputs_file)
    assert ended.exit_code == code
    for name in left:
        assert name in ended.stdout
    if "failed" in results:
        assert "It [works]." in ended.stdout
        assert "Mend it." in ended.stdout


def test_json_is_one_object_with_every_row(given: dict[str, Any], outputs_file: str) -> None:
    given["report"] = report("held", "unknown")
    printed = json.loads(call(outputs_file, "--json").stdout)
    assert printed["result"] == "unknown"
    assert [row["result"] for row in printed["rows"]] == ["held", "unknown"]
    assert printed["left"] == []


def test_by_default_no_consent_is_given(given: dict[str, Any], outputs_file: str) -> None:
    assert call(outputs_file).exit_code == 0
    assert given["consent"] == Consent()
    assert given["clients"] == 20
    assert given["tokens"] == "secret"


def test_options_reach_the_work(given: dict[str, Any], outputs_file: str) -> None:
    arguments = [
        "--clients",
        "5",
        "--only",
        "users",
        "--slow",
        "--notify-subscribers",
        "--token-command",
        "me",
    ]
    assert call(outputs_file, *arguments).exit_code == 0
    assert given["consent"] == Consent(subscribers=True, slow=True)
    assert (given["clients"], given["only"], given["tokens"]) == (5, ["users"], "me")


@pytest.mark.parametrize("typed", ["", "\n", "yes\n", "7\n", "313\n"])
def test_scopes_send_nothing_unless_the_number_is_typed(
    given: dict[str, Any], outputs_file: str, typed: str
) -> None:
    ended = call(outputs_file, "--scopes", "all,role", typed=typed)
    assert ended.exit_code != 0
    assert "consent" not in given
    assert "312 live connections of everybody" in ended.output.replace("\n", " ")
    assert "7 live connections of the role admin" in ended.output.replace("\n", " ")


def test_typing_the_number_confirms_the_scopes(given: dict[str, Any], outputs_file: str) -> None:
    assert call(outputs_file, "--scopes", "all,role", typed="312\n").exit_code == 0
    assert given["consent"] == Consent(scopes=frozenset({"all", "role"}))


def test_for_a_role_its_own_number_is_asked_for(given: dict[str, Any], outputs_file: str) -> None:
    assert call(outputs_file, "--scopes", "role", typed="7\n").exit_code == 0
    assert given["consent"] == Consent(scopes=frozenset({"role"}))


def test_other_scopes_are_refused(given: dict[str, Any], outputs_file: str) -> None:
    assert call(outputs_file, "--scopes", "shelter").exit_code == 2


def test_the_dry_run_calls_nothing_and_prints_steps_and_permissions(
    given: dict[str, Any], outputs_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("The dry run called AWS.")

    names = ("live_connections", "role_to_test", "shared_users_table", "tokens_for", "run_checks")
    for name in names:
        monkeypatch.setattr(command, name, refuse)
    monkeypatch.setattr(Outputs, "session", refuse)
    ended = call(outputs_file, "--dry-run", "--scopes", "all", "--json")
    assert ended.exit_code == 0
    printed = json.loads(ended.stdout)
    actions = {action for each in printed["policy"]["Statement"] for action in each["Action"]}
    assert {"dynamodb:Scan", "states:StartExecution", "iam:PassRole"} <= actions
    assert any("all" in step for step in printed["steps"])


def test_users_are_written_into_a_shared_table_once_its_name_is_typed(
    given: dict[str, Any], outputs_file: str
) -> None:
    given["shared"] = "The users table town-users has a stream"
    for typed in ("", "yes\n", "town-user\n"):
        ended = call(outputs_file, typed=typed)
        assert ended.exit_code != 0
        assert "has a stream" in ended.output.replace("\n", " ")
        assert "consent" not in given
    assert call(outputs_file, typed="town-users\n").exit_code == 0
    assert given["consent"] == Consent(users=True)


def test_json_does_not_ask_and_needs_the_option(given: dict[str, Any], outputs_file: str) -> None:
    given["shared"] = "The users table town-users has a stream"
    ended = call(outputs_file, "--json", typed="town-users\n")
    assert isinstance(ended.exception, MusterError)
    assert "--write-users" in (ended.exception.fix or "")
    assert "consent" not in given
    assert call(outputs_file, "--json", "--write-users").exit_code == 0
    assert given["consent"] == Consent(users=True)


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        ("town-users", [], "after a confirmation if the table has a stream"),
        ("people", [], "after a confirmation, because the table is your own"),
        ("people", ["--write-users"], "as --write-users allows"),
    ],
)
def test_the_dry_run_says_where_users_are_written(
    tmp_path: Path, table: str, options: list[str], said: str
) -> None:
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(OUTPUTS.to_dict() | {"users_table": table}))
    steps = json.loads(call(str(path), "--dry-run", "--json", *options).stdout)["steps"]
    assert any(said in step and table in step for step in steps)


def test_the_policy_allows_the_keys_of_the_deployment_only_for_it(outputs_file: str) -> None:
    printed = json.loads(call(outputs_file, "--dry-run", "--json").stdout)
    statements = [each for each in printed["policy"]["Statement"] if each["Action"] == ["kms:Decrypt"]]
    conditions = [each["Condition"]["StringEquals"] for each in statements]
    assert {resource for each in statements for resource in each["Resource"]} == {
        "arn:aws:kms:eu-west-1:123456789012:key/*"
    }
    assert {
        "kms:EncryptionContext:aws:dynamodb:tableName": ["town-connections", "town-users", "town-messages"],
        "kms:ViaService": ["dynamodb.eu-west-1.amazonaws.com"],
    } in conditions
    assert {
        "kms:EncryptionContext:SecretARN": [OUTPUTS.jwt_secret_arn],
        "kms:ViaService": ["secretsmanager.eu-west-1.amazonaws.com"],
    } in conditions
    assert len(conditions) == 4


def test_the_policy_allows_only_these_actions_on_every_resource(outputs_file: str) -> None:
    printed = json.loads(call(outputs_file, "--dry-run", "--json").stdout)
    anywhere = {
        action
        for statement in printed["policy"]["Statement"]
        for action in statement["Action"]
        if "*" in statement["Resource"]
    }
    assert anywhere == {
        "cloudwatch:DescribeAlarms",
        "lambda:GetAccountSettings",
        "logs:DescribeLogGroups",
        "servicequotas:ListServiceQuotas",
        "sns:GetSubscriptionAttributes",
        "sns:Unsubscribe",
        "xray:BatchGetTraces",
    }


def test_an_unknown_check_is_named(given: dict[str, Any], outputs_file: str) -> None:
    ended = call(outputs_file, "--only", "nothing")
    assert isinstance(ended.exception, MusterError)
    assert "nothing" in str(ended.exception)
