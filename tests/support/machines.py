"""The two state machines as deployed, run in this process by the emulator's interpreter.

They call the functions' code, with tables and a topic in memory. Only Deliver posts over sockets, through a
real `Gateway` to a fault proxy. A test can make every call fail, which the emulator's services do not offer.
"""

import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import uuid4

from botocore.exceptions import ClientError
from ministack.services import stepfunctions

from functions import accept, deliver, offline
from functions.shared import settings
from functions.shared.connections import Connection, Connections, User
from functions.shared.instants import epoch, iso
from functions.shared.messages import Queue
from functions.shared.notifications import Notifier
from functions.shared.posting.gateway import Gateway
from tests.support.fake_aws import DynamoDB, Sns
from tests.support.functions import ROLES, TOPIC
from tests.support.gateways import make_gateway
from tests.support.schemas import conforming

STATE_MACHINES = Path(__file__).parents[2] / "statemachines"
ARN = "arn:aws:states:us-east-1:000000000000:stateMachine:"
SHARDS = 2
RETENTION_SECONDS = 3600

ALWAYS = range(1_000_000)

CALLS = {
    "claim": "Claim puts the digest of a message",
    "record": "Record puts a message into the queue",
    "query": "QueryPage reads a page of connections",
    "fanout": "RunFanOut starts a fan-out",
    "deliver": "Deliver dies before it posts",
    "delivered": "Deliver dies after it has posted",
    "page": "the whole fan-out dies when it invokes Offline",
    "offline": "Offline dies before it notifies",
    "notified": "Offline dies after it has notified",
    "publish_batch": "Offline publishes a batch of users",
    "forget": "Offline deletes a row",
    "publish": "the state machines publish to SNS themselves",
}
"""Calls that can fail."""

Failures = Mapping[str, Collection[int]]
"""The calls that fail, by their number from 0."""

Json = dict[str, Any]


class Failure(Exception):
    """Raised by a call that a test makes fail."""


class Death(Exception):
    """Ends an execution that a test makes fail, whatever it catches."""


@dataclass
class Published:
    """What was published to SNS about one message."""

    users: Counter[str] = field(default_factory=Counter)
    """How often each user was notified."""
    page_users: set[str] = field(default_factory=set)
    """The users in messages of PublishPage."""
    partitions: list[Json] = field(default_factory=list)
    """The partitions in messages of PublishPartition."""
    whole: int = 0
    """How many messages of Notify, for the whole target."""


class Machines:
    """The state machines, and what they call."""

    def __init__(self, endpoint: str, page_size: int, batch_size: int) -> None:
        """`endpoint` is the connections endpoint to which Deliver posts."""
        self.dynamodb, self.sns = DynamoDB(), Sns()
        for service, operation in (self.dynamodb, "DeleteItem"), (self.sns, "PublishBatch"):
            event = f"before-parameter-build.{service.name}.{operation}"
            service.client.meta.events.register(event, self._before)
        self.published: list[Json] = []
        """The bodies of the messages that the state machines published themselves."""
        self.reported: dict[str, str] = {}
        """The last outcome that Deliver returned for each connection."""
        self.calls: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        """What the state machines counted in the last broadcast, by metric."""
        self.post_seconds = 20.0
        """The time for posting in an invocation of Deliver."""
        self._failures: Failures = {}
        self._endpoint = endpoint
        self._environments: list[Gateway] = []
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._variables = {
            "accept_arn": "accept",
            "deliver_arn": "deliver",
            "offline_arn": "offline",
            "fanout_arn": f"{ARN}fanout",
            "connections_table": "connections",
            "messages_table": "messages",
            "topic_arn": TOPIC,
            "metrics_namespace": "Muster",
            "service": "muster",
            "partition_concurrency": "2",
            "batch_concurrency": "2",
            "post_rate": "2000",
            "post_burst": "10",
        }
        self.size(page_size, batch_size)
        notifier = Notifier(
            self.dynamodb.client,
            self.sns.client,
            connections_table="connections",
            users_table="users",
            messages_table="messages",
            topic_arn=TOPIC,
            retention_seconds=RETENTION_SECONDS,
        )
        self._offline_dependencies = offline.Dependencies(
            notifier=notifier, connections=Connections(self.dynamodb.client, "connections")
        )
        self._accept_settings = settings.Accept(
            roles=ROLES, audience_shards=SHARDS, message_retention_seconds=RETENTION_SECONDS
        )

    def size(self, page_size: int, batch_size: int) -> None:
        """Deploy the machines with other page and batch sizes."""
        variables = self._variables | {"page_size": str(page_size), "batch_size": str(batch_size)}
        for name, kind in (("broadcast", "STANDARD"), ("fanout", "EXPRESS")):
            text = (STATE_MACHINES / f"{name}.asl.json").read_text()
            definition = re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], text)
            stepfunctions._state_machines[ARN + name] = {
                "name": name,
                "definition": definition,
                "roleArn": "",
                "type": kind,
            }

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Direct the interpreter's calls to this object, without pauses."""
        clock = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        with (
            mock.patch.object(stepfunctions, "_invoke_resource", self._invoke),
            mock.patch.object(stepfunctions, "time", clock),
            mock.patch("functions.shared.notifications.time.sleep"),
        ):
            yield

    def connect(self, user_id: str, role: str, shelter_id: str | None, *, age: float = 600) -> str:
        """Store the row of a connection that is `age` seconds old, and return its id."""
        connection_id = f"connection-{next(self._numbers)}="  # deterministic, for a given seed
        store = Connections(self.dynamodb.client, "connections")
        now = time.time()
        user = User(user_id=user_id, email=f"{user_id}@example.org", role=role, shelter_id=shelter_id)
        store.put(connection_id, user, now - age, int(now) + 3600, SHARDS)
        return connection_id

    def rows(self) -> dict[str, Json]:
        """The rows of the connections table, by connection id."""
        return {row["connectionId"]: row for row in self.dynamodb.rows("connections")}

    def broadcast(self, target: Json, *, failures: Failures | None = None, **request: Any) -> Json:
        """Broadcast to a target while some calls fail, and return the receipt, whose counts must add up."""
        self.reported, self.calls, self._failures = {}, Counter(), failures or {}
        self.counted = Counter()
        document = {
            "type": "alert",
            "target": target,
            "payload": {"text": "Water at the north gate"},
            **request,
        }
        with self.installed():
            outcome = self.start("broadcast", document)
        assert outcome["status"] == "SUCCEEDED", json.dumps(outcome)
        receipt: Json = conforming("receipt", json.loads(outcome["output"]))
        assert receipt["audience"] == receipt["delivered"] + receipt["gone"] + receipt["failed"]
        return receipt

    def start(self, machine: str, document: Any) -> Json:
        """Run a machine to its end and describe the execution."""
        arguments = {"stateMachineArn": ARN + machine, "name": uuid4().hex, "input": json.dumps(document)}
        _, _, body = stepfunctions._start_sync_execution(arguments)
        described: Json = json.loads(body)
        return described

    def notifications(self, message_id: str) -> Published:
        """What was published to SNS about a message. Each notification must follow its schema."""
        found = Published()
        for body in [*(json.loads(entry["Message"]) for entry in self.sns.published), *self.published]:
            conforming("offline-notification", body)
            if body["message"]["id"] != message_id:
                continue
            if "userId" in body:
                found.users[body["userId"]] += 1
            elif "userIds" in body:
                found.page_users |= set(body["userIds"])
            elif "partition" in body:
                found.partitions.append(body["partition"])
            else:
                found.whole += 1
        return found

    def resumed(self, user_id: str, role: str, shelter_id: str | None) -> list[str]:
        """The ids of the messages that a user gets from a resume."""
        connection = Connection(
            connection_id="any",
            user_id=user_id,
            role=role,
            shelter_id=shelter_id,
            connected_at=iso(0),
            expires_at=0,
        )
        page = Queue(self.dynamodb.client, "messages").missed(connection, None, None, 10_000_000)
        assert page.cursor is None
        return [json.loads(envelope)["id"] for envelope in page.envelopes]

    # ---- called by the interpreter

    def _invoke(self, resource: str, arguments: Json) -> Any:
        try:
            kind = resource.removeprefix("arn:aws:states:::")
            if kind == "lambda:invoke":
                function: Callable[[Json], Json] = getattr(self, f"_{arguments['FunctionName']}")
                return {"StatusCode": 200, "Payload": function(json.loads(json.dumps(arguments["Payload"])))}
            return {
                "dynamodb:putItem": self._put,
                "aws-sdk:dynamodb:query": self._query,
                "aws-sdk:sfn:startSyncExecution": self._fan_out,
                "sns:publish": self._publish,
                "aws-sdk:cloudwatch:putMetricData": self._measure,
            }[kind](arguments)
        except Failure as failure:
            name = {
                "claim": "DynamoDB.ThrottlingException",
                "record": "DynamoDB.ThrottlingException",
                "query": "DynamoDb.ProvisionedThroughputExceededException",
                "fanout": "Sfn.StateMachineDeletingException",
                "publish": "SNS.AuthorizationErrorException",
                "measure": "CloudWatch.InternalServiceFaultException",
            }.get(str(failure), "Runtime.ExitError")
            raise stepfunctions._ExecutionError(name, "made to fail") from failure

    def _fail(self, what: str) -> None:
        with self._lock:
            number = self.calls[what]
            self.calls[what] += 1
        if number in self._failures.get(what, ()):
            raise Failure(what)

    def _before(self, model: Any, **_: Any) -> None:
        try:
            self._fail({"DeleteItem": "forget", "PublishBatch": "publish_batch"}[model.name])
        except Failure:
            error: Any = {"Error": {"Code": "ThrottlingException", "Message": "made to fail"}}
            raise ClientError(error, model.name) from None

    def _put(self, arguments: Json) -> Json:
        """The calls of Claim and Record."""
        item, condition = arguments["Item"], arguments["ConditionExpression"]
        before = self.dynamodb.tables["messages"].get((item["audience"]["S"], item["messageId"]["S"]))
        if "digest" in item:
            self._fail("claim")
            assert condition == "attribute_not_exists(digest) OR digest = :digest"
            refused = before is not None and before["digest"] != item["digest"]
        else:
            self._fail("record")
            assert condition == "attribute_not_exists(messageId)"
            refused = before is not None
        if refused:
            raise stepfunctions._ExecutionError("DynamoDB.ConditionalCheckFailedException", "")
        self.dynamodb.client.put_item(TableName=arguments["TableName"], Item=arguments["Item"])
        return {}

    def _query(self, arguments: Json) -> Json:
        self._fail("query")
        answer: Json = self.dynamodb.client.query(**arguments)
        return answer

    def _fan_out(self, arguments: Json) -> Json:
        self._fail("fanout")
        described = self.start("fanout", json.loads(arguments["Input"]))
        return {name[0].upper() + name[1:]: value for name, value in described.items()}

    def _publish(self, arguments: Json) -> Json:
        self._fail("publish")
        self.published.append(json.loads(arguments["Message"]))
        return {"MessageId": "m"}

    def _measure(self, arguments: Json) -> Json:
        self._fail("measure")
        for metric in arguments["MetricData"]:
            with self._lock:
                self.counted[metric["MetricName"]] += metric["Value"]
        return {}

    def _accept(self, event: Json) -> Json:
        execution = accept.Execution(event["execution"]["id"], epoch(event["execution"]["startTime"]))
        accepted = accept.accept(event["request"], execution, self._accept_settings)
        return {"accepted": True, **accepted}

    def _deliver(self, batch: Json) -> Json:
        self._fail("deliver")
        with self._lock:
            gateway = self._environments.pop() if self._environments else make_gateway(self._endpoint)
        posted = deliver.deliver(
            conforming("delivery-batch", batch), time.monotonic() + self.post_seconds, gateway
        )
        # Lambda does not reuse an environment whose invocation crashed.
        self._fail("delivered")
        with self._lock:
            self._environments.append(gateway)
            self.reported |= {who.connection_id: outcome for who, outcome in posted.outcomes}
        result: Json = conforming("delivery-result", deliver.delivery_result(posted))
        return result

    def _offline(self, batch: Json) -> Json:
        try:
            self._fail("page")
        except Failure:
            raise Death from None
        self._fail("offline")
        try:
            result = offline.notify(conforming("offline-batch", batch), self._offline_dependencies)
        except ClientError as error:
            raise Failure("offline") from error
        self._fail("notified")
        counts: Json = conforming(
            "offline-result", {"offline": result.notified, "offlineFailed": result.failed}
        )
        return counts
