"""The deployed stack as tests use it: through boto3, with users and shelters of their own.

Roles come from Terraform and are shared, so a test that broadcasts to a role or to all looks only at its own
users; everything else that a test creates has a unique id.
"""

import base64
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import uuid4
from zlib import crc32

import jwt
from botocore.exceptions import ClientError

from muster import Outputs
from muster.local.seed import User
from tests.support.schemas import conforming
from tests.support.waiting import until

SHARDS = 2
"""How many index partitions the stack under test uses for a role, and for all."""

ORIGIN = "https://app.example.org"
"""The site whose web pages may connect to the stack under test."""

VARIABLES: dict[str, Any] = {
    "audience_shards": SHARDS,
    "page_size": 7,
    "batch_size": 3,
    "allowed_origins": [ORIGIN],
}
"""Terraform variables that let a few connections fill more than a page and more than a batch."""

SETTLED = timedelta(minutes=10)
"""Age of a connection that is past its handshake."""

Json = dict[str, Any]


def unique(kind: str) -> str:
    """Return a new id that begins with `kind`."""
    return f"{kind}-{uuid4().hex[:12]}"


@dataclass(frozen=True)
class Invocation:
    """The payload of an invocation, the error that the function raised, if any, and the end of its log."""

    payload: Any
    error: str | None
    log: str

    def records(self, message: str) -> list[Json]:
        """Return the structured log records with this message."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("message") == message]


@dataclass(frozen=True)
class Notification:
    """A message of the offline topic as a subscriber gets it."""

    body: Json
    attributes: dict[str, str]


class Deployment:
    """The stack under test."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self._notifications: list[Notification] = []
        self._barriers: set[str] = set()

    @cached_property
    def dynamodb(self) -> Any:
        return self.outputs.client("dynamodb")

    @cached_property
    def functions(self) -> Any:
        return self.outputs.client("lambda")

    @cached_property
    def iam(self) -> Any:
        return self.outputs.client("iam")

    @cached_property
    def stepfunctions(self) -> Any:
        return self.outputs.client("stepfunctions")

    @cached_property
    def tables(self) -> Any:
        return self.outputs.resource("dynamodb")

    @cached_property
    def gateway(self) -> Any:
        endpoint = self.outputs.connections_endpoint
        return self.outputs.session().client("apigatewaymanagementapi", endpoint_url=endpoint)

    @cached_property
    def cloudwatch(self) -> Any:
        return self.outputs.client("cloudwatch")

    @cached_property
    def _sns(self) -> Any:
        return self.outputs.client("sns")

    @cached_property
    def _sqs(self) -> Any:
        return self.outputs.client("sqs")

    # ---- users and tokens

    def user(self, role: str = "resident", shelter_id: str | None = None, *, active: bool = True) -> User:
        """Store a new user."""
        user = User(unique("user"), role, shelter_id, active)
        self.tables.Table(self.outputs.users_table).put_item(Item=user.item())
        return user

    @cached_property
    def jwt_secret(self) -> str:
        assert self.outputs.jwt_secret_arn
        answer = self.outputs.client("secretsmanager").get_secret_value(SecretId=self.outputs.jwt_secret_arn)
        return str(answer["SecretString"])

    def claims(self, user_id: str, seconds: float = 3600, **changed: Any) -> Json:
        """Return the claims of a valid token, with `changed` applied; None leaves a claim out."""
        claims = {
            "sub": user_id,
            "iss": self.outputs.jwt_issuer,
            "aud": self.outputs.jwt_audience,
            "iat": int(time.time()),
            "exp": int(time.time() + seconds),
        } | changed
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, user_id: str, seconds: float = 3600, **changed: Any) -> str:
        """Sign a token with the deployment's secret."""
        return jwt.encode(self.claims(user_id, seconds, **changed), self.jwt_secret, "HS256")

    # ---- connections

    def put_connection(
        self,
        user: User,
        *,
        connected_at: datetime | None = None,
        seconds: float = 3600,
        prefix: str = "",
        **attributes: Any,
    ) -> str:
        """Store the row of a closed connection, to which a post gets 410 Gone. Return its id.

        It lives for `seconds` from now (in the past, when negative) and is past its handshake unless
        `connected_at` says otherwise. `attributes` replaces attributes of the row; None leaves one out.
        """
        # API Gateway's ids end in "=", which must be encoded in a path; the emulator's do not.
        connection_id = f"{prefix}{uuid4().hex[:12]}="
        shard = crc32(connection_id.encode()) % SHARDS
        since = (connected_at or datetime.now(UTC) - SETTLED).isoformat(timespec="milliseconds")
        row = {
            "connectionId": connection_id,
            "userId": user.user_id,
            "email": user.email,
            "role": user.role,
            "roleShard": f"{user.role}#{shard}",
            "shard": f"all#{shard}",
            "shelterId": user.shelter_id,
            "connectedAt": since.replace("+00:00", "Z"),
            "lastSeenAt": since.replace("+00:00", "Z"),
            "ttl": int(time.time() + seconds),
        } | attributes
        row = {name: value for name, value in row.items() if value is not None}
        self.tables.Table(self.outputs.connections_table).put_item(Item=row)
        return connection_id

    def connection(self, connection_id: str) -> Json | None:
        """Return the row of a connection."""
        table = self.tables.Table(self.outputs.connections_table)
        row: Json | None = table.get_item(Key={"connectionId": connection_id}, ConsistentRead=True).get(
            "Item"
        )
        return row

    def connections_of(self, user_id: str) -> list[str]:
        """Return the ids of all the rows of a user's connections."""
        answer = self.dynamodb.query(
            TableName=self.outputs.connections_table,
            IndexName="UserIndex",
            KeyConditionExpression="userId = :user",
            ExpressionAttributeValues={":user": {"S": user_id}},
        )
        return [row["connectionId"]["S"] for row in answer["Items"]]

    def forget_connections(self, connection_ids: Iterable[str]) -> None:
        """Delete rows, so that no later broadcast to a role or to all finds them."""
        for connection_id in connection_ids:
            key = {"connectionId": {"S": connection_id}}
            self.dynamodb.delete_item(TableName=self.outputs.connections_table, Key=key)

    # ---- functions

    def invoke(self, function: str, event: Any) -> Invocation:
        """Invoke one of the deployment's functions by the name that its source has, or any by its ARN."""
        answer = self.functions.invoke(
            FunctionName=self.outputs.function_names.get(function, function),
            LogType="Tail",
            Payload=json.dumps(event),
        )
        log = base64.b64decode(answer.get("LogResult", "")).decode(errors="replace")
        return Invocation(json.loads(answer["Payload"].read()), answer.get("FunctionError"), log)

    def default(self, connection_id: str, message: Json, function: str = "default") -> Json:
        """Give a client message to the default function as API Gateway would, and return its answer.

        `function` is the ARN of a copy to ask instead.
        """
        event = {
            "requestContext": {"connectionId": connection_id, "eventType": "MESSAGE", "routeKey": "$default"},
            "body": json.dumps(message),
        }
        body: str = self.invoke(function, event).payload["body"]
        assert len(body.encode()) < 32 * 1024, "a frame over 32 KB closes the connection on AWS"
        answer: Json = json.loads(body)
        return answer

    # ---- broadcasts

    def start(self, request: Any, *, name: str | None = None, machine: str | None = None) -> str:
        """Start a broadcast execution, of the deployed state machine or another, and return its ARN."""
        answer = self.stepfunctions.start_execution(
            stateMachineArn=machine or self.outputs.broadcast_state_machine_arn,
            name=name or uuid4().hex,
            input=json.dumps(request),
        )
        return str(answer["executionArn"])

    def outcome(self, execution: str, seconds: float = 60) -> Json:
        """Return the description of an execution once it has ended."""

        def ended() -> Json | None:
            described: Json = self.stepfunctions.describe_execution(executionArn=execution)
            return None if described["status"] == "RUNNING" else described

        return until(ended, f"the end of {execution}", seconds) or {}

    def receipt(self, execution: str, seconds: float = 60) -> Json:
        """Return the receipt of an execution, which must follow its schema and add up."""
        outcome = self.outcome(execution, seconds)
        assert outcome["status"] == "SUCCEEDED", (outcome.get("error"), outcome.get("cause"))
        receipt: Json = conforming("receipt", json.loads(outcome["output"]))
        assert receipt["audience"] == receipt["delivered"] + receipt["gone"] + receipt["failed"]
        return receipt

    def broadcast(
        self, target: Json, *, type: str = "alert", machine: str | None = None, **fields: Any
    ) -> Json:
        """Broadcast to a target and return the receipt."""
        request = {"type": type, "target": target, "payload": {"text": "Water at the north gate"}, **fields}
        return self.receipt(self.start(request, machine=machine))

    def queued(self, audience: str) -> list[Json]:
        """Return the items of an audience key in the messages table, oldest first."""
        answer = self.tables.Table(self.outputs.messages_table).query(
            KeyConditionExpression="audience = :audience",
            ExpressionAttributeValues={":audience": audience},
            ConsistentRead=True,
        )
        items: list[Json] = answer["Items"]
        return items

    # ---- what reached SNS

    @property
    def name(self) -> str:
        """Return the deployment's `name_prefix`."""
        return self.outputs.broadcast_state_machine_arn.rpartition(":")[2].removesuffix("-broadcast")

    def metric(self, name: str) -> float:
        """Return the sum of what the deployment has counted under this metric in the last hour."""
        now = datetime.now(UTC)
        answer = self.cloudwatch.get_metric_statistics(
            Namespace="Muster",
            MetricName=name,
            Dimensions=[{"Name": "service", "Value": self.name}],
            StartTime=now - timedelta(hours=1),
            EndTime=now + timedelta(minutes=1),
            Period=60,
            Statistics=["Sum"],
        )
        return float(sum(point["Sum"] for point in answer["Datapoints"]))

    def notifications(self, message_id: str, reason: str | None = None) -> list[Notification]:
        """Return what the offline topic has carried about a message, as its SQS queue got it.

        Everything published before the call is in it: a barrier is published and waited for. Each
        notification follows its schema.
        """
        barrier = uuid4().hex
        self._sns.publish(TopicArn=self.outputs.offline_topic_arn, Message=json.dumps({"barrier": barrier}))
        until(lambda: barrier in self._drained(), "the barrier in the offline queue")
        return [
            notification
            for notification in self._notifications
            if notification.body["message"]["id"] == message_id
            and reason in (None, notification.body["reason"])
        ]

    def _drained(self) -> set[str]:
        """Read the queue empty, and return all barriers that have come through it."""
        url = self.outputs.offline_queue_url
        while received := self._sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=0
        ).get("Messages"):
            for message in received:
                published = json.loads(message["Body"])
                body = json.loads(published["Message"])
                if "barrier" in body:
                    self._barriers.add(body["barrier"])
                    continue
                attributes = published.get("MessageAttributes", {})
                values = {name: attribute["Value"] for name, attribute in attributes.items()}
                self._notifications.append(Notification(conforming("offline-notification", body), values))
            entries = [
                {"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]}
                for n, message in enumerate(received)
            ]
            self._sqs.delete_message_batch(QueueUrl=url, Entries=entries)
        return self._barriers


def users_of(notifications: Sequence[Notification]) -> list[str]:
    """Return the users that notifications are about, sorted."""
    return sorted(notification.body["userId"] for notification in notifications)


def pointers(answer: Mapping[str, Any]) -> set[str]:
    """Return where the faults of an error message or of a failed broadcast's cause lie."""
    return {fault["pointer"] for fault in answer.get("faults", ())}


def refused(call: Any, **arguments: Any) -> str:
    """Return the code of the AWS error that a call must end with."""
    try:
        call(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    raise AssertionError("the call was not refused")
