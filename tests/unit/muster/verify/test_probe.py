"""What a run of `muster verify` does with AWS: real boto3 clients whose services answer from memory."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from muster.errors import MusterError
from muster.local.seed import User
from muster.outputs import Outputs
from muster.progress import Silent
from muster.verify import Broken, Consent, Probe, SecretTokens, nested, shared_users_table
from muster.verify.ledger import LEDGER
from muster.verify.targets import choose_users
from tests.support.fake_aws import DynamoDB, Refusal, Service, StepFunctions
from tests.support.fake_world import ISSUER, OUTPUTS

TOWN = replace(OUTPUTS, connections_table="connections", users_table="users", messages_table="messages")
QUEUE = "https://sqs.eu-west-1.amazonaws.com/123456789012/q"
ROLES = {"admin": {"actions": ["alert"]}, "resident": {"actions": []}}


class Tables(DynamoDB):
    """The tables, of which the users table may have a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.description: dict[str, Any] | None = {}

    def DescribeTable(self, TableName: str) -> dict[str, Any]:
        if self.description is None:
            raise Refusal("AccessDeniedException")
        return {"Table": self.description}


class Functions(Service):
    """The function that has the roles in its environment."""

    name = "lambda"

    def GetFunctionConfiguration(self, FunctionName: str) -> dict[str, Any]:
        return {"Environment": {"Variables": {"ROLES": json.dumps(ROLES)}}}


class Machines(StepFunctions):
    """Executions that record their message in the queue of their target, and may fail afterwards."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.tables = tables
        self.machines: list[str] = []
        self.outcome: dict[str, Any] = {}
        self.before_answer: Callable[[], object] = lambda: None

    def CreateStateMachine(self, name: str, roleArn: str, definition: str) -> dict[str, Any]:
        self.machines.append(OUTPUTS.broadcast_state_machine_arn.rpartition(":")[0] + f":{name}")
        return {"stateMachineArn": self.machines[-1], "creationDate": 0}

    def DescribeStateMachine(self, stateMachineArn: str) -> dict[str, Any]:
        return {"roleArn": "arn:aws:iam::123456789012:role/town-broadcast-1", "definition": "{}"}

    def DeleteStateMachine(self, stateMachineArn: str) -> None:
        self.machines.remove(stateMachineArn)

    def StartExecution(self, stateMachineArn: str, name: str = "x", input: str = "") -> dict[str, Any]:
        request = json.loads(input)
        if "all" in request.get("target", ()):
            envelope = json.dumps({"sender": request["sender"], "payload": {}})
            self.tables.add("messages", {"audience": "all", "messageId": f"id-{name}", "envelope": envelope})
            self.tables.add("messages", {"audience": f"id#id-{name}", "messageId": f"id-{name}"})
        self.before_answer()
        return super().StartExecution(stateMachineArn, name, input)

    def DescribeExecution(self, executionArn: str) -> dict[str, Any]:
        return super().DescribeExecution(executionArn) | self.outcome


class Topic(Service):
    """The offline topic: its subscriptions, each with its filter policy."""

    name = "sns"

    def __init__(self) -> None:
        super().__init__()
        self.subscriptions: dict[str, dict[str, str]] = {}

    def Subscribe(
        self, TopicArn: str, Protocol: str, Endpoint: str, Attributes: dict[str, str], **_: Any
    ) -> dict[str, Any]:
        arn = f"{TopicArn}:{len(self.subscriptions)}"
        self.subscriptions[arn] = {"Protocol": Protocol, "Endpoint": Endpoint, **Attributes}
        return {"SubscriptionArn": arn}

    def ListSubscriptionsByTopic(self, TopicArn: str) -> dict[str, Any]:
        return {
            "Subscriptions": [
                {"SubscriptionArn": arn, "Protocol": each["Protocol"], "Endpoint": each["Endpoint"]}
                for arn, each in self.subscriptions.items()
            ]
        }

    def GetSubscriptionAttributes(self, SubscriptionArn: str) -> dict[str, Any]:
        return {"Attributes": self.subscriptions[SubscriptionArn]}

    def Unsubscribe(self, SubscriptionArn: str) -> None:
        del self.subscriptions[SubscriptionArn]


class Queues(Service):
    """SQS queues by name. All have the same messages, of which one call returns one."""

    name = "sqs"

    def __init__(self) -> None:
        super().__init__()
        self.queues: dict[str, dict[str, str]] = {}
        self.waiting: list[dict[str, Any]] = []

    def CreateQueue(self, QueueName: str, Attributes: dict[str, str]) -> dict[str, Any]:
        self.queues[QueueName] = Attributes
        return {"QueueUrl": QUEUE}

    def GetQueueUrl(self, QueueName: str) -> dict[str, Any]:
        if QueueName not in self.queues:
            raise Refusal("AWS.SimpleQueueService.NonExistentQueue")
        return {"QueueUrl": QUEUE}

    def DeleteQueue(self, QueueUrl: str) -> None:
        self.queues.clear()

    def ReceiveMessage(self, QueueUrl: str, **_: Any) -> dict[str, Any]:
        found = [
            {"Body": json.dumps({"Message": json.dumps(each)}), "ReceiptHandle": "h"} for each in self.waiting
        ]
        return {"Messages": found[:1]}

    def DeleteMessage(self, QueueUrl: str, ReceiptHandle: str) -> None:
        self.waiting.pop(0)


class Account:
    """The services of one account, in place of those that `Outputs.client` would call."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.machines = Machines(self.tables)
        self.topic = Topic()
        self.queues = Queues()
        self.services: dict[str, Service] = {
            each.name: each for each in (self.tables, Functions(), self.machines, self.topic, self.queues)
        }


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Account:
    found = Account()
    monkeypatch.setattr(Outputs, "client", lambda outputs, service, **_: found.services[service].client)
    return found


@pytest.fixture
def probe(account: Account) -> Probe:
    return a_probe()


def a_probe(tokens: SecretTokens | None = None, **consent: Any) -> Probe:
    tokens = tokens or SecretTokens(ISSUER)
    users = asyncio.run(choose_users(tokens, 3, Silent()))
    return Probe(TOWN, tokens, users, Silent(), Consent(**{"users": True, **consent}))


# ---- users


def test_a_run_makes_its_users_with_the_weakest_role_and_removes_them(account: Account, probe: Probe) -> None:
    async def run() -> None:
        async with probe:
            rows = account.tables.rows("users")
            assert {row["userId"] for row in rows} == {user.user_id for user in probe.users.stored}
            assert {row["role"] for row in rows} == {"resident"}
            (ledger,) = account.tables.rows("messages")
            assert ledger["audience"] == LEDGER

    asyncio.run(run())
    assert account.tables.rows("users") == []
    assert account.tables.rows("messages") == []
    assert probe.left == []


@pytest.mark.parametrize("which", ["away", "unknown"])
def test_a_user_who_exists_already_ends_the_run_and_stays(account: Account, probe: Probe, which: str) -> None:
    person: User = getattr(probe.users, which)
    account.tables.add("users", {"userId": person.user_id, "role": "admin"})

    async def run() -> None:
        async with probe:
            pytest.fail("The run began.")

    with pytest.raises(MusterError, match=person.user_id):
        asyncio.run(run())
    assert [row["userId"] for row in account.tables.rows("users")] == [person.user_id]
    assert account.tables.rows("messages") == []


@pytest.mark.parametrize(
    ("slow", "minutes", "begins"), [(False, 14, False), (False, 16, True), (True, 29, False)]
)
def test_tokens_that_end_before_the_run_are_refused(
    account: Account, slow: bool, minutes: int, begins: bool
) -> None:
    class Short(SecretTokens):
        def first_expiry(self) -> float:
            return time.time() + 60 * minutes

    probe = a_probe(Short(ISSUER), slow=slow)

    async def run() -> None:
        async with probe:
            pass

    if begins:
        asyncio.run(run())
        return
    with pytest.raises(MusterError, match="may take"):
        asyncio.run(run())
    assert account.tables.calls == []


def test_a_users_table_that_others_read_needs_a_consent(account: Account) -> None:
    probe = a_probe(users=False)

    async def run() -> None:
        async with probe:
            pass

    with pytest.raises(MusterError, match="other systems may read") as refusal:
        asyncio.run(run())
    assert "--write-users" in (refusal.value.fix or "")
    assert account.tables.called("PutItem") == []


@pytest.mark.parametrize(
    ("table", "description", "why"),
    [
        ("town-users", {}, None),
        ("town-users", {"StreamSpecification": {"StreamEnabled": False}}, None),
        ("town-users", {"StreamSpecification": {"StreamEnabled": True}}, "has a stream"),
        ("town-users", None, "unknown"),
        ("people", {}, "your own"),
    ],
)
def test_a_users_table_is_shared_if_it_is_not_the_modules_or_has_a_stream(
    account: Account, table: str, description: dict[str, Any] | None, why: str | None
) -> None:
    account.tables.description = description
    found = shared_users_table(replace(OUTPUTS, users_table=table))
    assert found is None if why is None else why in (found or "")


# ---- connections


def test_a_connection_is_indexed_once_the_index_has_it(
    account: Account, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.tables.page_size = 1
    reads = iter(range(10))

    async def appear(seconds: float) -> None:
        account.tables.add("connections", {"connectionId": f"c{next(reads)}", "userId": "ann"})

    monkeypatch.setattr("muster.verify.probe.asyncio.sleep", appear)
    account.tables.add("connections", {"connectionId": "other", "userId": "bob"})
    rows = asyncio.run(probe.indexed("ann", 2, 10.0))
    assert [row["connectionId"]["S"] for row in rows] == ["c0", "c1"]
    assert asyncio.run(probe.indexed("nobody", 1, 0.0)) == []


def test_paged_waits_for_a_second_page(
    account: Account, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.tables.add("connections", *({"connectionId": f"c{n}", "userId": "ann"} for n in range(3)))

    async def fill(seconds: float) -> None:
        account.tables.page_size = 2

    monkeypatch.setattr("muster.verify.probe.asyncio.sleep", fill)
    asyncio.run(probe.paged("ann", 10.0))
    assert len(account.tables.called("Query")) == 2
    account.tables.page_size = 10
    asyncio.run(probe.paged("ann", 0.0))


def test_padding_enlarges_a_row_and_never_makes_one(account: Account, probe: Probe) -> None:
    account.tables.add("connections", {"connectionId": "c", "userId": "ann"})
    asyncio.run(probe.pad_connection("c", 1000))
    (row,) = account.tables.rows("connections")
    assert len(row["padding"]) == 1000
    with pytest.raises(Exception, match="ConditionalCheckFailed"):
        asyncio.run(probe.pad_connection("gone", 1000))
    assert len(account.tables.rows("connections")) == 1


# ---- broadcasts


@pytest.mark.parametrize("ended", [{"status": "FAILED", "error": "States.Timeout"}, {"status": "RUNNING"}])
def test_a_recorded_message_is_deleted_although_its_receipt_never_came(
    account: Account, ended: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muster.verify.probe.ENDING_SECONDS", 0.1)
    account.machines.outcome = ended
    others = {"audience": "all", "messageId": "id-a", "envelope": '{"sender": {"service": "the city"}}'}
    account.tables.add("messages", others)

    probe = a_probe(scopes=frozenset({"all"}))

    async def run() -> None:
        async with probe:
            await probe.start({"all": True}, {"text": "A test."})
            assert len(account.tables.rows("messages")) == 4

    asyncio.run(run())
    assert account.tables.rows("messages") == [others]


def test_a_message_whose_start_was_interrupted_is_deleted(account: Account) -> None:
    account.machines.outcome = {"status": "FAILED", "error": "States.Timeout"}

    probe = a_probe(scopes=frozenset({"all"}))

    async def run() -> None:
        async with probe:
            task = asyncio.create_task(probe.start({"all": True}, {"text": "A test."}))
            loop = asyncio.get_running_loop()
            account.machines.before_answer = partial(loop.call_soon_threadsafe, task.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert any(row["audience"] == "all" for row in account.tables.rows("messages"))

    asyncio.run(run())
    assert account.tables.rows("messages") == []
    assert account.machines.called("DescribeExecution")


def test_a_killed_runs_message_is_deleted_by_the_next_run(account: Account) -> None:
    killed, following = a_probe(scopes=frozenset({"all"})), a_probe()

    async def run() -> None:
        await killed.start({"all": True}, {"text": "A test."})
        for row in account.tables.tables["messages"].values():
            if "startedAt" in row:
                row["startedAt"] = {"N": str(int(time.time()) - 3700)}
        async with following:
            pass

    asyncio.run(run())
    assert account.tables.rows("messages") == []


def test_a_nested_run_returns_the_output_of_the_fanout(account: Account, probe: Probe) -> None:
    child = {"Status": "SUCCEEDED", "Output": json.dumps({"counts": {"audience": 6}})}
    account.machines.outcome = {"status": "SUCCEEDED", "output": json.dumps(child)}
    _seconds, output = asyncio.run(probe.run_nested({"cursor": None}))
    assert output == {"counts": {"audience": 6}}
    (made,) = account.machines.called("CreateStateMachine")
    state = json.loads(made["definition"])["States"]["Run"]
    assert state["Arguments"]["StateMachineArn"] == OUTPUTS.fanout_state_machine_arn
    assert made["roleArn"].endswith("town-broadcast-1")

    asyncio.run(probe.clean_up())
    assert account.machines.machines == []


@pytest.mark.parametrize(
    "outcome",
    [
        {"status": "FAILED", "error": "States.TaskFailed"},
        {"status": "SUCCEEDED", "output": json.dumps({"Status": "TIMED_OUT", "Error": "States.Timeout"})},
        {"status": "RUNNING"},
    ],
)
def test_a_nested_run_that_does_not_succeed_is_broken(
    account: Account, probe: Probe, outcome: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nested, "NESTED_SECONDS", 0.0)
    account.machines.outcome = outcome
    with pytest.raises(Broken, match="nested run ended"):
        asyncio.run(probe.run_nested({}))


# ---- the offline topic


def note(user: User, identifier: str, reason: str) -> dict[str, Any]:
    return {"userId": user.user_id, "reason": reason, "message": {"id": identifier}}


def test_the_queue_of_a_run_reads_the_reasons_of_one_message(account: Account, probe: Probe) -> None:
    hard, absent = probe.users.hard, probe.users.absent
    account.queues.waiting = [
        note(absent, "earlier", "absent"),
        note(absent, "m", "absent"),
        {"reason": "unreached", "message": {"id": "m"}},
        note(hard, "m", "gone"),
        note(hard, "later", "gone"),
    ]

    async def run() -> dict[str, str]:
        async with probe.subscribed_queue([hard, absent]) as read:
            return await read("m", 2, 10.0)

    assert asyncio.run(run()) == {hard.user_id: "gone", absent.user_id: "absent"}
    assert len(account.queues.waiting) == 1
    (subscription,) = account.topic.subscriptions.values()
    assert json.loads(subscription["FilterPolicy"]) == {"userId": [hard.user_id, absent.user_id]}
    (attributes,) = account.queues.queues.values()
    (statement,) = json.loads(attributes["Policy"])["Statement"]
    assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": OUTPUTS.offline_topic_arn}}

    asyncio.run(probe.clean_up())
    assert account.topic.subscriptions == {}
    assert account.queues.queues == {}


def test_the_queue_of_a_run_stops_reading_when_the_time_has_passed(account: Account, probe: Probe) -> None:
    async def run() -> dict[str, str]:
        async with probe.subscribed_queue([probe.users.absent]) as read:
            return await read("m", 1, 0.05)

    assert asyncio.run(run()) == {}


def test_subscriptions_whose_filter_may_match_are_named_without_addresses(
    account: Account, probe: Probe
) -> None:
    def add(arn: str, protocol: str, endpoint: str, policy: dict[str, Any] | None = None) -> None:
        attributes = {"FilterPolicy": json.dumps(policy)} if policy else {}
        account.topic.subscriptions[arn] = {"Protocol": protocol, "Endpoint": endpoint, **attributes}

    topic = OUTPUTS.offline_topic_arn
    add(f"{topic}:1", "sqs", "arn:aws:sqs:eu-west-1:123456789012:town-offline")
    add(f"{topic}:2", "email", "ann@example.org")
    add(f"{topic}:3", "sqs", "arn:aws:sqs:eu-west-1:123456789012:admins", {"role": ["admin"]})
    add("PendingConfirmation", "email", "bob@example.org")
    probe.role = "resident"
    assert asyncio.run(probe.others_who_match([probe.users.hard])) == ["sqs town-offline", "email 2"]
