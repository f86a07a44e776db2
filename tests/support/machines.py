"""The two state machines as they are, run in this process by the emulator's interpreter.

What they call is the project's own code over tables and a topic in memory; only Deliver posts through a real
`Gateway`, to a fault proxy. Every call can be made to fail, which the emulator's own services cannot.
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
from functions.shared.handover import Handover
from functions.shared.instants import epoch, iso
from functions.shared.messages import Queue
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
    "claim": "the state machines bind a message id to what the message says",
    "record": "the state machines put a message into the queue",
    "query": "they read a page of connections",
    "fanout": "they start a fan-out",
    "deliver": "they invoke Deliver: it dies before it did anything",
    "delivered": "they invoke Deliver: it dies of its answer",
    "page": "they invoke Offline: the whole fan-out dies instead",
    "offline": "they invoke Offline: it dies before it did anything",
    "handed_over": "they invoke Offline: it dies of its answer",
    "hand_over": "Offline publishes a batch of users",
    "forget": "Offline deletes a row",
    "publish": "they publish by themselves",
}
"""What can be made to fail."""

Trouble = Mapping[str, Collection[int]]
"""Which of CALLS fail, by their number from 0."""

Json = dict[str, Any]


class Failure(Exception):
    """A call that was told to fail."""


class Death(Exception):
    """An execution that was told to fail, whatever it catches."""


@dataclass
class Told:
    """What SNS was told about one message."""

    users: Counter[str] = field(default_factory=Counter)
    """How often about each user by themselves."""
    floor: set[str] = field(default_factory=set)
    """The users named by a message of the floor under Offline."""
    partitions: list[Json] = field(default_factory=list)
    """The partitions named by a message of the floor under a fan-out."""
    whole: int = 0
    """How often about the whole target."""


class Machines:
    """The state machines, installed in the interpreter while the context lasts."""

    def __init__(self, endpoint: str, page_size: int, batch_size: int) -> None:
        """`endpoint` is the connections endpoint that Deliver posts to."""
        self.dynamodb, self.sns = DynamoDB(), Sns()
        for service, operation in (self.dynamodb, "DeleteItem"), (self.sns, "PublishBatch"):
            event = f"before-parameter-build.{service.name}.{operation}"
            service.client.meta.events.register(event, self._before)
        self.published: list[Json] = []
        """The bodies of the messages that the state machines themselves published."""
        self.reported: dict[str, str] = {}
        """The latest outcome that Deliver returned for each connection."""
        self.calls: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        """What the state machines themselves counted in the latest broadcast, by metric."""
        self.post_seconds = 20.0
        """The time that an invocation of Deliver has for posting."""
        self._trouble: Trouble = {}
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
        handover = Handover(
            self.dynamodb.client,
            self.sns.client,
            connections_table="connections",
            users_table="users",
            messages_table="messages",
            topic_arn=TOPIC,
            retention_seconds=RETENTION_SECONDS,
        )
        self._handing = offline.Dependencies(handover, Connections(self.dynamodb.client, "connections"))
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
        """Have the interpreter make its calls here, and pause for nothing."""
        clock = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        with (
            mock.patch.object(stepfunctions, "_invoke_resource", self._invoke),
            mock.patch.object(stepfunctions, "time", clock),
            mock.patch("functions.shared.handover.time.sleep"),
        ):
            yield

    def connect(self, user_id: str, role: str, shelter_id: str | None, *, age: float = 600) -> str:
        """Store the row of a connection that is so many seconds old, and return its id."""
        connection_id = f"connection-{next(self._numbers)}="  # the same again for the same seed
        store = Connections(self.dynamodb.client, "connections")
        now = time.time()
        user = User(user_id, f"{user_id}@example.org", role, shelter_id)
        store.put(connection_id, user, now - age, int(now) + 3600, SHARDS)
        return connection_id

    def rows(self) -> dict[str, Json]:
        """The rows of the connections table, by their ids."""
        return {row["connectionId"]: row for row in self.dynamodb.rows("connections")}

    def broadcast(self, target: Json, *, trouble: Trouble | None = None, **request: Any) -> Json:
        """Broadcast to a target, in trouble of some kinds, and return the receipt, which adds up."""
        self.reported, self.calls, self._trouble = {}, Counter(), trouble or {}
        self.counted = Counter()
        document = {
            "type": "alert",
            "target": target,
            "payload": {"text": "Water at the north gate"},
            **request,
        }
        with self.installed():
            outcome = self.start("broadcast", document)
        assert outcome["status"] == "SUCCEEDED", outcome
        receipt: Json = conforming("receipt", json.loads(outcome["output"]))
        assert receipt["audience"] == receipt["delivered"] + receipt["gone"] + receipt["failed"]
        return receipt

    def start(self, machine: str, document: Any) -> Json:
        """Run a machine to its end and describe the execution."""
        arguments = {"stateMachineArn": ARN + machine, "name": uuid4().hex, "input": json.dumps(document)}
        _, _, body = stepfunctions._start_sync_execution(arguments)
        described: Json = json.loads(body)
        return described

    def told(self, message_id: str) -> Told:
        """What SNS was told about a message; each notification follows its schema."""
        told = Told()
        for body in [*(json.loads(entry["Message"]) for entry in self.sns.published), *self.published]:
            conforming("offline-notification", body)
            if body["message"]["id"] != message_id:
                continue
            if "userId" in body:
                told.users[body["userId"]] += 1
            elif "userIds" in body:
                told.floor |= set(body["userIds"])
            elif "partition" in body:
                told.partitions.append(body["partition"])
            else:
                told.whole += 1
        return told

    def resumed(self, user_id: str, role: str, shelter_id: str | None) -> list[str]:
        """The ids of the messages that a user gets on resume."""
        connection = Connection("any", user_id, role, shelter_id, iso(0), 0)
        page = Queue(self.dynamodb.client, "messages").missed(connection, None, None, 10_000_000)
        assert page.cursor is None
        return [json.loads(envelope)["id"] for envelope in page.envelopes]

    # ---- what the interpreter calls

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
            raise stepfunctions._ExecutionError(name, "told to fail") from failure

    def _fail(self, what: str) -> None:
        with self._lock:
            number = self.calls[what]
            self.calls[what] += 1
        if number in self._trouble.get(what, ()):
            raise Failure(what)

    def _before(self, model: Any, **_: Any) -> None:
        try:
            self._fail({"DeleteItem": "forget", "PublishBatch": "hand_over"}[model.name])
        except Failure:
            error: Any = {"Error": {"Code": "ThrottlingException", "Message": "told to fail"}}
            raise ClientError(error, model.name) from None

    def _put(self, arguments: Json) -> Json:
        """Claim puts a digest, Record a message."""
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
        # An environment whose invocation crashed is not used again.
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
            result = offline.hand_over(conforming("offline-batch", batch), self._handing)
        except ClientError as error:
            raise Failure("offline") from error
        self._fail("handed_over")
        counts: Json = conforming(
            "offline-result", {"offline": result.offline, "offlineFailed": result.failed}
        )
        return counts
