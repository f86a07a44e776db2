"""`muster verify` against the applied stack: what it finds, whom it reaches, and what it leaves."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from muster import Outputs, listeners
from muster.cli.verify import app
from muster.errors import MusterError
from muster.progress import Silent
from muster.tokens import TokenIssuer
from muster.verify import (
    Consent,
    Report,
    Row,
    SecretTokens,
    Tokens,
    UnsafeTarget,
    live_connections,
    tokens_for,
    verify,
)
from muster.verify.ledger import LEDGER
from muster.verify.plan import policy
from muster.verify.probe import Probe
from muster.verify.targets import PREFIX, choose_users
from tests.support.deployment import Deployment, unique
from tests.support.fixtures import Open
from tests.support.waiting import until

NOT_CALLED_HERE = {
    "apigateway:GET",
    "cloudwatch:DescribeAlarms",
    "iam:PassRole",
    "kms:Decrypt",
    "lambda:GetAccountSettings",
    "servicequotas:ListServiceQuotas",
    "xray:BatchGetTraces",
}
"""What the emulator does not have, and what no call is named after."""

FALLBACK_CALLS = {
    "sns:Subscribe",
    "sns:Unsubscribe",
    "sqs:CreateQueue",
    "sqs:DeleteMessage",
    "sqs:DeleteQueue",
    "sqs:GetQueueUrl",
    "sqs:ReceiveMessage",
}

EMULATOR_CANNOT_TELL = {"post-rate", "quotas", "lambda-concurrency", "plain-http", "alarms", "traces"}


@pytest.fixture
def outputs_file(deployment: Deployment, tmp_path: Path) -> Path:
    """The outputs of the stack under test, for the command line."""
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(deployment.outputs.to_dict()))
    return path


@pytest.fixture
def bystander_queue(deployment: Deployment) -> Iterator[Callable[[dict[str, Any]], str]]:
    """Subscribe a queue to the offline topic with a filter policy; return its URL."""
    sqs, sns = deployment.outputs.client("sqs"), deployment.outputs.client("sns")
    made: list[tuple[str, str]] = []

    def subscribe(filter_policy: dict[str, Any]) -> str:
        url: str = sqs.create_queue(QueueName=unique("bystander"))["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        subscription = sns.subscribe(
            TopicArn=deployment.outputs.offline_topic_arn,
            Protocol="sqs",
            Endpoint=arn,
            Attributes={"FilterPolicy": json.dumps(filter_policy)} if filter_policy else {},
            ReturnSubscriptionArn=True,
        )["SubscriptionArn"]
        made.append((subscription, url))
        return url

    yield subscribe
    for subscription, url in made:
        sns.unsubscribe(SubscriptionArn=subscription)
        sqs.delete_queue(QueueUrl=url)


def messages_in(deployment: Deployment, url: str) -> int:
    """Count what waits in a queue."""
    answer = deployment.outputs.client("sqs").get_queue_attributes(
        QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"]
    )
    return int(answer["Attributes"]["ApproximateNumberOfMessages"])


def left_behind(deployment: Deployment) -> list[str]:
    """Return the name of everything in the stack that a run of `muster verify` has made."""
    outputs = deployment.outputs
    found = []
    for table in (outputs.connections_table, outputs.users_table, outputs.messages_table):
        for row in deployment.tables.Table(table).scan()["Items"]:
            text = json.dumps(row, default=str)
            # The digest of a message names nobody.
            found += [f"{table}: {text[:200]}"] if PREFIX in text else []
    queues = outputs.client("sqs").list_queues(QueueNamePrefix=PREFIX).get("QueueUrls", [])
    subscriptions = outputs.client("sns").list_subscriptions()["Subscriptions"]
    machines = deployment.stepfunctions.list_state_machines()["stateMachines"]
    names = [*queues, *(s["Endpoint"] for s in subscriptions), *(m["name"] for m in machines)]
    return found + [name for name in names if PREFIX in name]


def traces_of(deployment: Deployment) -> tuple[int, int, int]:
    """Count the rows of the messages table, the offline queue's messages, and the failed executions.

    An alarm goes off for a failed execution of the broadcast machine.
    """
    table = deployment.tables.Table(deployment.outputs.messages_table)
    failed = deployment.stepfunctions.list_executions(
        stateMachineArn=deployment.outputs.broadcast_state_machine_arn, statusFilter="FAILED"
    )
    return (
        int(table.scan(Select="COUNT")["Count"]),
        messages_in(deployment, deployment.outputs.offline_queue_url),
        len(failed["executions"]),
    )


def run(outputs: Outputs, tokens: Tokens | None = None, **options: Any) -> Report:
    """Verify with a few clients."""
    return asyncio.run(verify(outputs, tokens or tokens_for(outputs), clients=4, **options))


def results(report: Report) -> dict[str, str]:
    return {row.name: row.result for row in report.rows}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The IAM action of each call that is made from now on, apart from the test's own."""
    found: set[str] = set()
    original = Outputs.session

    def watched(self: Outputs) -> boto3.Session:
        session = original(self)
        session.events.register("before-call", lambda model, **_: found.add(_action(model)))
        return session

    monkeypatch.setattr(Outputs, "session", watched)
    return found


def allowed(deployment: Deployment, consent: Consent) -> set[str]:
    """The actions that the dry run lists."""
    return {
        action
        for statement in policy(deployment.outputs, consent)["Statement"]
        for action in statement["Action"]
    }


def test_the_local_stack_holds_everything_that_it_has_and_nobody_else_gets_anything(
    deployment: Deployment,
    open_socket: Open,
    bystander_queue: Callable[[dict[str, Any]], str],
    outputs_file: Path,
    called: set[str],
) -> None:
    bystander = open_socket(deployment.user("admin", unique("shelter")))
    queue = bystander_queue({})
    before = traces_of(deployment)
    called.clear()

    ended = CliRunner().invoke(app, ["--outputs", str(outputs_file), "--json", "--clients", "6"])

    calls = set(called)
    report = json.loads(ended.stdout)
    rows = {row["name"]: row["result"] for row in report["rows"]}
    assert ended.exit_code == 3, report
    unknown = {name for name, result in rows.items() if result == "unknown"}
    assert unknown == EMULATOR_CANNOT_TELL | {"fallback"}
    assert "failed" not in rows.values()
    assert report["left"] == []
    assert bystander.heard() == []
    assert messages_in(deployment, queue) == 0
    assert left_behind(deployment) == []
    assert traces_of(deployment) == before
    assert calls - allowed(deployment, Consent()) == set()
    assert allowed(deployment, Consent()) - calls == NOT_CALLED_HERE | FALLBACK_CALLS


def test_the_fallback_reaches_its_queue_and_no_subscription_whose_filter_does_not_match(
    deployment: Deployment, bystander_queue: Callable[[dict[str, Any]], str], called: set[str]
) -> None:
    queue = bystander_queue({"role": ["resident", "first_responder"]})
    called.clear()

    report = run(deployment.outputs, only=["fallback"], consent=Consent(subscribers=True))

    assert results(report) == {"header": "held", "fallback": "held"}
    assert called >= FALLBACK_CALLS
    assert called - allowed(deployment, Consent(subscribers=True)) == set()
    assert messages_in(deployment, queue) == 0
    assert left_behind(deployment) == []


def test_a_scope_reaches_real_people_once_it_is_consented_to(
    deployment: Deployment, open_socket: Open, called: set[str]
) -> None:
    bystander = open_socket(deployment.user("resident"))
    called.clear()
    assert live_connections(deployment.outputs)["resident"] >= 1
    consent = Consent(scopes=frozenset({"all", "role"}))

    report = run(deployment.outputs, only=["scopes"], consent=consent)

    assert results(report)["scopes"] == "held"
    assert called - allowed(deployment, consent) == set()
    (message,) = bystander.heard()
    assert "Nothing has happened" in message["payload"]["text"]
    assert left_behind(deployment) == []


def test_no_target_beyond_the_run_is_accepted(deployment: Deployment) -> None:
    person = deployment.user("resident", unique("shelter"))
    tokens = tokens_for(deployment.outputs)
    users = asyncio.run(choose_users(tokens, 3, Silent()))
    probe = Probe(deployment.outputs, tokens, users, Silent(), Consent())
    own = probe.users.listeners[0].user_id
    for target in (
        {},
        {"all": True},
        {"roles": ["resident"]},
        {"users": [person.user_id]},
        {"users": [own, person.user_id]},
        {"shelters": [person.shelter_id]},
        {"users": [own], "roles": [PREFIX]},
    ):
        with pytest.raises(UnsafeTarget):
            asyncio.run(probe.start(target, {"text": "No."}))


@pytest.mark.parametrize("moment", ["users", "checks", "queue"])
def test_an_interrupted_run_leaves_nothing(deployment: Deployment, moment: str) -> None:
    async def interrupted() -> None:
        reached = asyncio.Event()
        tokens = tokens_for(deployment.outputs)
        users = await choose_users(tokens, 3, Silent())
        probe = InterruptedProbe(deployment.outputs, tokens, users, Silent(), Consent())
        probe.moment, probe.reached = moment, reached

        async def work() -> None:
            async with probe, probe.socket(probe.tokens.issue(probe.users.hard.user_id)):
                await probe.start({"users": [probe.users.hard.user_id]}, {"text": "A test."})
                probe.pause("checks")
                await probe.call("sns", "get_topic_attributes", TopicArn=probe.outputs.offline_topic_arn)
                async with probe.subscribed_queue([probe.users.hard]):
                    await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.wait_for(reached.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert probe.left == []

    asyncio.run(interrupted())
    assert left_behind(deployment) == []


class InterruptedProbe(Probe):
    """Says when the call is under way during which it is to be cancelled."""

    moment: str
    reached: asyncio.Event

    def pause(self, moment: str) -> None:
        if moment == self.moment:
            self.reached.set()

    async def call(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        if operation == "put_item" and arguments["TableName"] == self.outputs.users_table:
            self.pause("users")
        if operation == "create_queue":
            self.pause("queue")
        return await super().call(service, operation, **arguments)


def test_ctrl_c_ends_the_command_and_removes_what_it_made(deployment: Deployment, outputs_file: Path) -> None:
    command = [sys.executable, "-m", "muster", "verify", "--outputs", str(outputs_file), "--only", "long-run"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    users = deployment.tables.Table(deployment.outputs.users_table)
    until(lambda: any(row["userId"].startswith(PREFIX) for row in users.scan()["Items"]), "a user of the run")
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert left_behind(deployment) == []


def test_what_a_killed_run_left_is_removed_by_one_an_hour_later(
    deployment: Deployment, outputs_file: Path
) -> None:
    command = [sys.executable, "-m", "muster", "verify", "--outputs", str(outputs_file), "--only", "long-run"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    machines = deployment.stepfunctions
    until(
        lambda: any(
            machine["name"].startswith(PREFIX) for machine in machines.list_state_machines()["stateMachines"]
        ),
        "the run's machine",
        60,
    )
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    assert left_behind(deployment)

    messages = deployment.tables.Table(deployment.outputs.messages_table)
    (ledger,) = deployment.queued(LEDGER)
    run(deployment.outputs, only=["expiry"])
    assert deployment.queued(LEDGER) == [ledger], "a run that may still be under way is left alone"

    messages.put_item(Item=ledger | {"startedAt": int(time.time()) - 3700})
    report = run(deployment.outputs, only=["expiry"])
    assert report.left == []
    assert left_behind(deployment) == []


def test_a_stack_whose_connections_are_lost_fails_the_broadcasts(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "ARRIVAL_SECONDS", 0.5)

    def lose(row: Row) -> None:
        if row.name == "clients":
            rows = deployment.tables.Table(deployment.outputs.connections_table).scan()["Items"]
            deployment.forget_connections(
                row["connectionId"] for row in rows if row["userId"].startswith(PREFIX)
            )

    report = run(deployment.outputs, only=["users", "shelter"], on_row=lose)

    assert results(report) == {"clients": "held", "users": "failed", "shelter": "failed"}
    assert "did not arrive at 2 of 2" in next(row.detail for row in report.rows if row.name == "users")
    assert left_behind(deployment) == []


def test_a_stack_that_expects_other_tokens_fails_the_handshakes(deployment: Deployment) -> None:
    outputs = replace(deployment.outputs, jwt_audience="elsewhere")

    report = run(outputs, only=["query", "header", "subprotocol", "resume"])

    assert results(report) == {
        "query": "failed",
        "header": "failed",
        "subprotocol": "failed",
        "resume": "unknown",
    }
    assert report.rows[0].detail == "The handshake was answered with 401."


def test_tokens_may_come_from_a_command(deployment: Deployment, tmp_path: Path) -> None:
    script = tmp_path / "print_token.py"
    script.write_text(
        "import os, jwt\n"
        f"claims = {deployment.claims('')!r} | {{'sub': 'idp-' + os.environ['MUSTER_USER_ID']}}\n"
        f"print(jwt.encode(claims, {deployment.jwt_secret!r}))\n"
    )
    tokens = tokens_for(deployment.outputs, f"'{sys.executable}' '{script}'")

    report = run(deployment.outputs, tokens=tokens, only=["refused-tokens", "refused-users", "users"])

    assert set(results(report).values()) == {"held"}
    assert left_behind(deployment) == []


def test_a_user_who_is_in_the_table_already_is_not_touched(deployment: Deployment, open_socket: Open) -> None:
    person = deployment.user("resident")
    socket = open_socket(person)
    message = deployment.broadcast({"users": [person.user_id]})["id"]

    class Tokens(SecretTokens):
        def user(self, suggested: str) -> str:
            return person.user_id if suggested.endswith("-away") else suggested

    tokens = Tokens(TokenIssuer.from_outputs(deployment.outputs))
    with pytest.raises(MusterError, match=person.user_id):
        run(deployment.outputs, tokens=tokens, only=["expiry"])

    users = deployment.tables.Table(deployment.outputs.users_table)
    assert users.get_item(Key={"userId": person.user_id})["Item"] == person.item()
    assert deployment.connections_of(person.user_id) == [socket.connection_id]
    assert [item["messageId"] for item in deployment.queued(f"user#{person.user_id}")] == [message]
    assert left_behind(deployment) == []


def test_a_table_whose_rows_do_not_expire_fails_its_row(deployment: Deployment) -> None:
    def expire(enabled: bool) -> None:
        deployment.dynamodb.update_time_to_live(
            TableName=deployment.outputs.messages_table,
            TimeToLiveSpecification={"Enabled": enabled, "AttributeName": "ttl"},
        )

    expire(False)
    try:
        report = run(deployment.outputs, only=["expiry"])
    finally:
        expire(True)
    assert results(report) == {"expiry": "failed"}


def _action(model: Any) -> str:
    """Return the IAM action of an API call."""
    service = {"stepfunctions": "states", "cloudwatch logs": "logs", "sfn": "states"}
    name = model.service_model.service_id.hyphenize()
    name = {"sfn": "states", "cloudwatch-logs": "logs", "secrets-manager": "secretsmanager"}.get(name, name)
    return f"{service.get(name, name)}:{model.name}"
