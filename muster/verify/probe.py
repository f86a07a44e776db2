"""What a run of `muster verify` makes in a deployment, whom it may address, and how it removes all of it.

Before anything is made, its name is written into a row of the messages table, the run's ledger: the audience
is LEDGER, the message id the run's. A run that could not clean up is found there by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from muster.aws import error_code
from muster.broadcaster import Broadcaster, Execution, MessageType, Offline, Receipt
from muster.errors import MusterError
from muster.local.seed import User
from muster.outputs import Outputs
from muster.progress import Progress
from muster.seats import Seats, wait_for_receipt
from muster.verify.filters import may_match
from muster.verify.rows import Broken
from muster.verify.tokens import Tokens

T = TypeVar("T")

WIRE_LOGGER = logging.getLogger("muster.verify.websocket")
WIRE_LOGGER.setLevel(logging.INFO)
"""At DEBUG, websockets logs the handshake's headers, and so the token."""

PREFIX = "muster-verify"
"""Begins the name of everything that a run makes."""

LEDGER = "muster-verify"
"""The audience in the messages table that holds one row for each run. Real audiences contain `#`, or are
`all`."""

STALE_SECONDS = 3600.0
"""Age at which the leftovers of another run are removed. A run takes a few minutes."""

ENDING_SECONDS = 60.0
"""How long cleaning up waits for broadcasts that still run, so that they record nothing afterwards."""

NESTED_SECONDS = 120.0
"""How long a nested run may take: twice what it is made to take."""

NOTIFICATION_SECONDS = 60.0
"""How long a notification may take to the run's queue: a new subscription takes effect a moment later."""

FRAME_SECONDS = 30.0
"""How long a reply or a message may take: just over the 29 s that API Gateway gives an integration."""

MOST_NAMED = 100
"""Users in a target [docs/protocol.md]. More are refused: a failed execution, for which an alarm goes off."""

SENDER = {"service": PREFIX}


class UnsafeTarget(MusterError):
    """The target would reach people who are not users of this run."""


@dataclass(frozen=True)
class Consent:
    """What the person who runs it agreed to beyond the run's own users: nothing by default."""

    scopes: frozenset[str] = frozenset()
    """Of `all` and `role`: broadcasts that reach real people."""
    subscribers: bool = False
    """Let other subscriptions of the offline topic get the two notifications of the fallback."""
    slow: bool = False
    """Checks that wait for minutes."""


@dataclass
class Cast:
    """The users of a run. `seats` hold clients throughout; the others play one part each."""

    seats: list[User]
    sender: User
    away: User
    hard: User
    absent: User
    nested: User
    inactive: User
    unknown: User

    @property
    def stored(self) -> list[User]:
        """Those who get a row in the users table."""
        return [*self.seats, self.sender, self.away, self.hard, self.absent, self.nested, self.inactive]


@dataclass
class Socket:
    """A raw WebSocket: frames as they are, for what a `Client` hides."""

    connection: ClientConnection
    handshake_seconds: float = 0.0
    early: list[str] = field(default_factory=list)

    async def ask(self, frame: Mapping[str, Any] | str) -> dict[str, Any]:
        """Send a frame and return the reply to it, or to a frame that is no JSON; keep what comes before."""
        text = frame if isinstance(frame, str) else json.dumps({"id": uuid4().hex, **frame})
        expected = json.loads(text).get("id") if isinstance(frame, Mapping) else None
        await self.connection.send(text)
        async with asyncio.timeout(FRAME_SECONDS):
            while True:
                raw = str(await self.connection.recv())
                message: dict[str, Any] = json.loads(raw)
                if "replyTo" in message and message["replyTo"] == expected:
                    return message
                self.early.append(raw)

    async def message(self, identifier: str) -> str:
        """Return the text of the frame that carries a broadcast message."""
        async with asyncio.timeout(FRAME_SECONDS):
            while True:
                raw = self.early.pop(0) if self.early else str(await self.connection.recv())
                if json.loads(raw).get("id") == identifier:
                    return raw

    async def close_code(self, seconds: float) -> int | None:
        """Wait for the server to close, and return its code; None for a cut. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            try:
                while True:
                    await self.connection.recv()
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd else None

    def reset(self) -> None:
        """Cut the connection with a TCP reset: no WebSocket or TLS is closed in order."""
        raw = self.connection.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()


class Probe:
    """A run: its users, its sockets, its clients of AWS. Everything that checks do goes through it."""

    def __init__(
        self,
        outputs: Outputs,
        tokens: Tokens,
        clients: int,
        progress: Progress,
        consent: Consent,
    ) -> None:
        self.outputs = outputs
        self.tokens = tokens
        self.progress = progress
        self.consent = consent
        self.run = f"{PREFIX}-{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(4)}"
        self.shelter = f"{self.run}-shelter"
        self.cast = self._choose(clients)
        self.seats = Seats(outputs.websocket_url, tokens.issue, self.cast.seats, progress)
        self.broadcaster = Broadcaster.from_outputs(outputs)
        self.left: list[str] = []
        self.open = contextlib.AsyncExitStack()
        """What checks leave open for later ones; closed first when cleaning up."""
        self.permissions: dict[str, Any] = {}
        """The deployment's roles, each with the actions that it may send; read when the run begins."""
        self.role = PREFIX
        """The role of the run's users: `$connect` refuses one that the deployment does not have."""
        self._clients: dict[str, Any] = {}
        self._executions: list[Execution] = []
        self._noted = False

    @property
    def local(self) -> bool:
        """Whether an emulator is verified rather than AWS."""
        return self.outputs.endpoint_url is not None

    # ---- AWS

    def aws(self, service: str) -> Any:
        """Return a boto3 client of the deployment, made once."""
        if service not in self._clients:
            self._clients[service] = self.outputs.client(service)
        return self._clients[service]

    async def call(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Call AWS. A cancellation waits for the answer: what was made must be known before cleaning up."""
        answer: dict[str, Any] = await finished(
            asyncio.to_thread(getattr(self.aws(service), operation), **arguments)
        )
        return answer

    async def pages(self, service: str, operation: str, result: str, **arguments: Any) -> list[Any]:
        """Call AWS until it has no further page, and return all entries of `result`."""

        def read() -> list[Any]:
            paginator = self.aws(service).get_paginator(operation)
            return [entry for page in paginator.paginate(**arguments) for entry in page.get(result, ())]

        return await finished(asyncio.to_thread(read))

    # ---- what is made

    async def __aenter__(self) -> Probe:
        try:
            await self._choose_role()
            await self._sweep()
            self.progress.step("Making users")
            await self.note(f"shelter:{self.shelter}", *(f"user:{user.user_id}" for user in self.cast.stored))
            for user in self.cast.stored:
                await self._store(user)
        except (BotoCoreError, ClientError) as error:
            await self.clean_up()
            raise MusterError(
                f"The run cannot begin: {_reason(error)}.",
                fix="Check the credentials, and allow what `muster verify --dry-run` lists.",
            ) from error
        except BaseException:
            await self.clean_up()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.clean_up()

    async def _choose_role(self) -> None:
        """Take the role with the fewest permissions for the run's users."""
        deployed = self.outputs.function_names.get("default")
        if deployed is None:
            raise MusterError(
                "The outputs do not name the functions.", fix="Export the outputs of this version."
            )
        configuration = await self.call("lambda", "get_function_configuration", FunctionName=deployed)
        self.permissions = json.loads(configuration["Environment"]["Variables"]["ROLES"])
        self.role = min(self.permissions, key=lambda role: (len(self.permissions[role]["actions"]), role))

    async def note(self, *resources: str) -> None:
        """Write names into the ledger, before what they name is made."""
        self._noted = True
        await self.call(
            "dynamodb",
            "update_item",
            TableName=self.outputs.messages_table,
            Key=_ledger_key(self.run),
            UpdateExpression="SET startedAt = if_not_exists(startedAt, :now) ADD resources :names",
            ExpressionAttributeValues={
                ":now": {"N": str(int(time.time()))},
                ":names": {"SS": sorted(resources)},
            },
        )

    async def _store(self, user: User) -> None:
        """Store a user of this run; never replace one that exists."""
        item = {key: _attribute(value) for key, value in user.item().items()}
        try:
            await self.call(
                "dynamodb",
                "put_item",
                TableName=self.outputs.users_table,
                Item=item | {"role": {"S": self.role}, "verifyRun": {"S": self.run}},
                ConditionExpression="attribute_not_exists(userId)",
            )
        except ClientError as error:
            if error_code(error) != "ConditionalCheckFailedException":
                raise
            raise MusterError(
                f"The users table already has a user {user.user_id}, whom a run must not touch.",
                fix="Have the token command make tokens for users who are not in the table.",
            ) from None

    def _choose(self, clients: int) -> Cast:
        def user(name: str, *, shelter: bool = False, active: bool = True) -> User:
            user_id = self.tokens.user(f"{self.run}-{name}")
            return User(user_id, PREFIX, self.shelter if shelter else None, active)

        return Cast(
            seats=[user(f"{n:03}", shelter=n % 2 == 0) for n in range(clients)],
            **{
                name: user(name, active=name != "inactive")
                for name in ("sender", "away", "hard", "absent", "nested", "inactive", "unknown")
            },
        )

    async def set_role(self, user: User, role: str) -> None:
        """Give a user of this run another role, which its next connection has."""
        await self.call(
            "dynamodb",
            "update_item",
            TableName=self.outputs.users_table,
            Key={"userId": {"S": user.user_id}},
            UpdateExpression="SET #role = :role",
            ConditionExpression="verifyRun = :run",
            ExpressionAttributeNames={"#role": "role"},
            ExpressionAttributeValues={":role": {"S": role}, ":run": {"S": self.run}},
        )

    # ---- connections

    @contextlib.asynccontextmanager
    async def socket(
        self,
        token: str | None = None,
        *,
        query: str | None = None,
        subprotocols: Sequence[str] = (),
    ) -> AsyncIterator[Socket]:
        """Open a raw WebSocket; `token` travels in the Authorization header, `query` in the address."""
        address = self.outputs.websocket_url + (f"?Authorization={query}" if query is not None else "")
        began = time.perf_counter()
        try:
            connection = await connect(
                address,
                additional_headers={"Authorization": f"Bearer {token}"} if token is not None else None,
                subprotocols=[Subprotocol(name) for name in subprotocols] or None,
                compression=None,
                ping_interval=None,
                open_timeout=FRAME_SECONDS,
                close_timeout=5,
                max_size=None,
                proxy=None if self.local else True,
                logger=WIRE_LOGGER,
            )
        except InvalidStatus:
            raise
        except Exception as error:  # its text may hold the address, and so the token
            raise Broken(
                f"No WebSocket could be opened: {type(error).__name__}.",
                "Check websocket_url, its certificate and its DNS record.",
            ) from None
        try:
            yield Socket(connection, time.perf_counter() - began)
        finally:
            await connection.close()

    async def connections_of(self, user_id: str) -> list[dict[str, Any]]:
        """Return the rows of a user's connections, as the index that broadcasts read has them."""
        return await self.pages(
            "dynamodb",
            "query",
            "Items",
            TableName=self.outputs.connections_table,
            IndexName="UserIndex",
            KeyConditionExpression="userId = :user",
            ExpressionAttributeValues={":user": {"S": user_id}},
        )

    async def indexed(self, user_id: str, count: int, seconds: float) -> list[dict[str, Any]]:
        """Return a user's connections once there are `count`, or what there is after so many seconds."""
        deadline = time.monotonic() + seconds
        while len(rows := await self.connections_of(user_id)) != count and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        return rows

    async def forget_connection(self, connection_id: str) -> None:
        """Delete the row of a connection."""
        await self._delete(self.outputs.connections_table, {"connectionId": {"S": connection_id}})

    async def pad_connection(self, connection_id: str, size: int) -> None:
        """Make the row of a connection of this run so many bytes larger."""
        await self.call(
            "dynamodb",
            "update_item",
            TableName=self.outputs.connections_table,
            Key={"connectionId": {"S": connection_id}},
            UpdateExpression="SET padding = :padding",
            ConditionExpression="attribute_exists(connectionId)",
            ExpressionAttributeValues={":padding": {"S": "x" * size}},
        )

    async def paged(self, user_id: str, seconds: float) -> None:
        """Return when the user's connections no longer fit a page of a query, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            page = await self.call(
                "dynamodb",
                "query",
                TableName=self.outputs.connections_table,
                IndexName="UserIndex",
                KeyConditionExpression="userId = :user",
                ProjectionExpression="connectionId",
                ExpressionAttributeValues={":user": {"S": user_id}},
            )
            if "LastEvaluatedKey" in page:
                return
            await asyncio.sleep(0.2)

    # ---- broadcasts

    def check_target(self, target: Mapping[str, Any]) -> None:
        """Raise `UnsafeTarget` unless the target holds users and the shelter of this run only."""
        own = {user.user_id for user in self.cast.stored}
        allowed = {"users", "shelters"} | ({"all"} if "all" in self.consent.scopes else set())
        if "role" in self.consent.scopes:
            allowed |= {"roles"}
        if len(target.get("users", ())) > MOST_NAMED:
            raise UnsafeTarget(f"A target names at most {MOST_NAMED} users.", fix="Name fewer.")
        strangers = [*(set(target) - allowed)]
        strangers += [name for name in target.get("users", ()) if name not in own]
        strangers += [name for name in target.get("shelters", ()) if name != self.shelter]
        if strangers or not target:
            raise UnsafeTarget(
                f"This target may reach others than users of this run: {', '.join(strangers) or 'empty'}.",
                fix="Address the run's own users and shelter only.",
            )

    async def start(
        self,
        target: Mapping[str, Any],
        payload: Mapping[str, Any],
        *,
        type: MessageType = "broadcast",
        offline: Offline = "never",
        name: str | None = None,
    ) -> Execution:
        """Start a broadcast to this run's own people. Nothing is published to SNS by default."""
        self.check_target(target)
        execution = await finished(
            asyncio.to_thread(
                self.broadcaster.start, type, target, payload, offline=offline, sender=SENDER, name=name
            )
        )
        self.follow(execution)
        return execution

    def follow(self, execution: Execution) -> None:
        """Let cleaning up wait for an execution that records messages."""
        self._executions.append(execution)

    async def receipt(self, execution: Execution) -> Receipt:
        """Return the receipt of a broadcast."""
        receipt = await wait_for_receipt(self.broadcaster, execution)
        self._executions.remove(execution)
        return receipt

    async def run_nested(self, fanout_input: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        """Run fanout from a STANDARD machine, as broadcast does; return its seconds and its output.

        The machine has broadcast's role, which may start fanout and nothing more of this kind.
        """
        broadcast = self.outputs.broadcast_state_machine_arn
        described = await self.call("stepfunctions", "describe_state_machine", stateMachineArn=broadcast)
        partition = broadcast.split(":")[1]
        machine = f"{broadcast.rpartition(':')[0]}:{self.run}"
        run = {
            "Type": "Task",
            "Resource": f"arn:{partition}:states:::aws-sdk:sfn:startSyncExecution",
            "Arguments": {
                "StateMachineArn": self.outputs.fanout_state_machine_arn,
                "Input": "{% $string($states.input) %}",
            },
            "TimeoutSeconds": 330,
            "End": True,
        }
        await self.note(f"machine:{machine}")
        await self.call(
            "stepfunctions",
            "create_state_machine",
            name=self.run,
            roleArn=described["roleArn"],
            definition=json.dumps({"QueryLanguage": "JSONata", "StartAt": "Run", "States": {"Run": run}}),
        )
        began = time.monotonic()
        started = await self.call(
            "stepfunctions", "start_execution", stateMachineArn=machine, input=json.dumps(fanout_input)
        )
        while time.monotonic() - began < NESTED_SECONDS:
            ended = await self.call(
                "stepfunctions", "describe_execution", executionArn=started["executionArn"]
            )
            if ended["status"] != "RUNNING":
                break
            await asyncio.sleep(1)
        seconds = time.monotonic() - began
        child = json.loads(ended.get("output") or "{}")
        if ended["status"] != "SUCCEEDED" or child.get("Status") != "SUCCEEDED":
            raise Broken(
                f"The nested run ended after {seconds:.0f} s: {ended.get('error') or child.get('Error')}.",
                "Lower page_size, and tell Muster's maintainers what AWS answers.",
            )
        output: dict[str, Any] = json.loads(child["Output"])
        return seconds, output

    # ---- the offline topic

    async def others_who_match(self, users: Sequence[User]) -> list[str]:
        """Return every subscription that would get a notification about these users.

        Each is its protocol and its endpoint, or its id where the endpoint is a person's address.
        """
        matching = []
        for subscription in await self.subscriptions():
            arn = subscription["SubscriptionArn"]
            if not arn.startswith("arn:"):
                continue  # not confirmed: it gets nothing
            attributes = (await self.call("sns", "get_subscription_attributes", SubscriptionArn=arn))[
                "Attributes"
            ]
            if any(may_match(attributes, note) for user in users for note in _notifications(user, self.role)):
                endpoint = subscription["Endpoint"]
                shown = endpoint if endpoint.startswith("arn:") else arn
                matching.append(f"{subscription['Protocol']} {shown.rpartition(':')[2]}")
        return matching

    @contextlib.asynccontextmanager
    async def queue(
        self, users: Sequence[User]
    ) -> AsyncIterator[Callable[[str, int], Coroutine[Any, Any, dict[str, str]]]]:
        """Subscribe a queue to notifications about these users; yield what reads it.

        That takes a message id and a number of users, and returns the reason for each user, once there are so
        many or after NOTIFICATION_SECONDS.
        """
        topic = self.outputs.offline_topic_arn
        partition, _, region, account = topic.split(":")[1:5]
        queue_arn = f"arn:{partition}:sqs:{region}:{account}:{self.run}"
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": queue_arn,
            "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        await self.note(f"queue:{self.run}")
        made = await self.call(
            "sqs", "create_queue", QueueName=self.run, Attributes={"Policy": json.dumps(policy)}
        )
        await self.call(
            "sns",
            "subscribe",
            TopicArn=topic,
            Protocol="sqs",
            Endpoint=queue_arn,
            Attributes={"FilterPolicy": json.dumps({"userId": [user.user_id for user in users]})},
            ReturnSubscriptionArn=True,
        )

        async def read(message_id: str, count: int) -> dict[str, str]:
            reasons: dict[str, str] = {}
            deadline = time.monotonic() + NOTIFICATION_SECONDS
            while len(reasons) < count and time.monotonic() < deadline:
                answer = await self.call(
                    "sqs",
                    "receive_message",
                    QueueUrl=made["QueueUrl"],
                    MaxNumberOfMessages=10,
                    WaitTimeSeconds=1,
                )
                for entry in answer.get("Messages", ()):
                    notification = json.loads(json.loads(entry["Body"])["Message"])
                    if notification["message"]["id"] == message_id and "userId" in notification:
                        reasons[notification["userId"]] = notification["reason"]
                    await self.call(
                        "sqs",
                        "delete_message",
                        QueueUrl=made["QueueUrl"],
                        ReceiptHandle=entry["ReceiptHandle"],
                    )
            return reasons

        yield read

    # ---- cleaning up

    async def clean_up(self) -> None:
        """Remove everything that this run made; what cannot be removed is in `left`. Repeatable."""
        self.progress.step("Removing what the run made")
        with contextlib.suppress(Exception):  # a client that ended with an error is closed all the same
            await self.open.aclose()
        deadline = time.monotonic() + ENDING_SECONDS
        for execution in self._executions:
            with contextlib.suppress(MusterError):
                await asyncio.to_thread(
                    self.broadcaster.wait, execution, timeout=max(0.1, deadline - time.monotonic())
                )
        self._executions.clear()
        if self._noted:
            self.left += await self._remove(self.run)

    async def _sweep(self) -> None:
        """Remove what runs have left behind that began more than STALE_SECONDS ago."""
        rows = await self.pages(
            "dynamodb",
            "query",
            "Items",
            TableName=self.outputs.messages_table,
            KeyConditionExpression="audience = :ledger",
            ExpressionAttributeValues={":ledger": {"S": LEDGER}},
        )
        for row in rows:
            if time.time() - float(row["startedAt"]["N"]) > STALE_SECONDS:
                run = row["messageId"]["S"]
                self.progress.step(f"Removing what {run} left behind")
                self.left += await self._remove(run)

    async def _remove(self, run: str) -> list[str]:
        """Remove what a run's ledger names, last made first, then the ledger; return what remains."""
        left: list[str] = []
        try:
            row = await self.call(
                "dynamodb",
                "get_item",
                TableName=self.outputs.messages_table,
                Key=_ledger_key(run),
                ConsistentRead=True,
            )
        except (BotoCoreError, ClientError) as error:
            return [f"{run}: the list of what it made cannot be read ({_reason(error)})"]
        names = set(row.get("Item", {}).get("resources", {}).get("SS", ()))
        kinds = {
            "queue": self._remove_queue,
            "machine": self._remove_machine,
            "message": self._remove_message,
        }
        kinds |= {"shelter": self._remove_shelter, "user": self._remove_user}
        for kind, remove in kinds.items():
            for name in sorted(name.partition(":")[2] for name in names if name.startswith(f"{kind}:")):
                try:
                    await remove(name, run)
                except (BotoCoreError, ClientError) as error:
                    left.append(f"{kind} {name} ({_reason(error)})")
        if not left and row.get("Item"):
            try:
                await self._delete(self.outputs.messages_table, _ledger_key(run))
            except (BotoCoreError, ClientError) as error:
                left.append(f"the list of what {run} made ({_reason(error)})")
        return left

    async def _remove_queue(self, name: str, run: str) -> None:
        """Remove a queue of a run, and its subscription before it."""
        region, account = self.outputs.offline_topic_arn.split(":")[3:5]
        partition = self.outputs.offline_topic_arn.split(":")[1]
        endpoint = f"arn:{partition}:sqs:{region}:{account}:{name}"
        for subscription in await self.subscriptions():
            if subscription["Endpoint"] == endpoint and subscription["SubscriptionArn"].startswith("arn:"):
                await self.call("sns", "unsubscribe", SubscriptionArn=subscription["SubscriptionArn"])
        try:
            url = (await self.call("sqs", "get_queue_url", QueueName=name))["QueueUrl"]
        except ClientError as error:
            if "NonExistentQueue" in error_code(error) or "QueueDoesNotExist" in str(error):
                return
            raise
        await self.call("sqs", "delete_queue", QueueUrl=url)

    async def subscriptions(self) -> list[dict[str, Any]]:
        """Return every subscription of the offline topic."""
        return await self.pages(
            "sns", "list_subscriptions_by_topic", "Subscriptions", TopicArn=self.outputs.offline_topic_arn
        )

    async def _remove_machine(self, arn: str, run: str) -> None:
        # Step Functions answers success for a machine that is not there [DeleteStateMachine].
        await self.call("stepfunctions", "delete_state_machine", stateMachineArn=arn)

    async def _remove_message(self, name: str, run: str) -> None:
        audience, _, identifier = name.rpartition(":")
        await self._forget(audience, identifier)

    async def _remove_shelter(self, shelter_id: str, run: str) -> None:
        # Only an id that nobody else has: a row in the shelters table would reach readers of its stream.
        await self._forget_audience(f"shelter#{shelter_id}")

    async def _remove_user(self, user_id: str, run: str) -> None:
        key = {"userId": {"S": user_id}}
        row = await self.call(
            "dynamodb", "get_item", TableName=self.outputs.users_table, Key=key, ConsistentRead=True
        )
        if "Item" in row and row["Item"].get("verifyRun") != {"S": run}:
            return  # a real person, whose id a token command gave: nothing of theirs is the run's
        for connection in await self.connections_of(user_id):
            await self.forget_connection(connection["connectionId"]["S"])
        for audience in ("user", "handover"):
            await self._forget_audience(f"{audience}#{user_id}")
        await self._delete(self.outputs.users_table, key)

    async def _forget_audience(self, audience: str) -> None:
        rows = await self.pages(
            "dynamodb",
            "query",
            "Items",
            TableName=self.outputs.messages_table,
            KeyConditionExpression="audience = :audience",
            ProjectionExpression="messageId",
            ExpressionAttributeValues={":audience": {"S": audience}},
        )
        for row in rows:
            await self._forget(audience, row["messageId"]["S"])

    async def _forget(self, audience: str, identifier: str) -> None:
        """Delete a recorded message, and the digest that binds its id."""
        for key in (audience, f"id#{identifier}"):
            await self._delete(
                self.outputs.messages_table, {"audience": {"S": key}, "messageId": {"S": identifier}}
            )

    async def _delete(self, table: str, key: Mapping[str, Any]) -> None:
        await self.call("dynamodb", "delete_item", TableName=table, Key=key)


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Await work that a cancellation must not leave half done: it ends before the cancellation goes on."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _notifications(user: User, role: str) -> list[dict[str, Any]]:
    """Return the attributes and bodies of whatever a fallback about a user may publish."""
    attributes = [
        {"type": "broadcast", "reason": reason, "role": role, "userId": user.user_id}
        for reason in ("gone", "failed", "absent")
    ]
    # What the machines publish when the offline function crashes names no single user.
    attributes.append({"type": "broadcast", "reason": "unreached"})
    message = {"type": "broadcast", "sender": SENDER}
    return [
        {"attributes": each, "body": {"reason": each["reason"], "message": message, **_user_of(each)}}
        for each in attributes
    ]


def _user_of(attributes: Mapping[str, str]) -> dict[str, str]:
    return {"userId": attributes["userId"]} if "userId" in attributes else {}


def _ledger_key(run: str) -> dict[str, Any]:
    return {"audience": {"S": LEDGER}, "messageId": {"S": run}}


def _attribute(value: str | bool) -> dict[str, Any]:
    return {"BOOL": value} if isinstance(value, bool) else {"S": value}


def _reason(error: BotoCoreError | ClientError) -> str:
    if isinstance(error, ClientError):
        return f"{error.operation_name}: {error_code(error) or 'no code'}"
    return type(error).__name__
