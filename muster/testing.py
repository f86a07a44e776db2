"""Test helpers: a local stack for each test session, clients without asyncio, and notifications from SQS.

`muster.pytest_plugin` provides them as fixtures. Nothing here needs pytest.

    MusterError
    └── NotReceived                 the expected message did not arrive in time; also an AssertionError
"""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from muster.client import Client, ClientClosed, Message
from muster.errors import MusterError, StackError
from muster.local.seed import User
from muster.local.stack import Stack
from muster.outputs import Outputs
from muster.tokens import TokenIssuer
from muster.types import Envelope, OfflineNotification, ReceivedEnvelope

T = TypeVar("T")

RECEIVE_SECONDS = 10.0
"""How long `receive` waits by default."""

_POLL_SECONDS = 1
_LOG_SECONDS = 1.0


class NotReceived(MusterError, AssertionError):
    """No matching message arrived in time."""


def describe(error: Exception) -> str:
    """Return an error as one line: the problem, and the fix if there is one."""
    if not isinstance(error, MusterError):
        return str(error)
    return f"{error.message} Fix: {error.fix}" if error.fix else error.message


# ---- the stack of a test session


@dataclass(frozen=True)
class SessionStack:
    """The stack that the processes of one test session share.

    `folder` belongs to the session; `start` creates it. The state of a kept stack is outside of it.
    """

    folder: Path
    state_dir: Path

    @property
    def kept(self) -> bool:
        """Whether the stack stays up after the session."""
        return not self.state_dir.is_relative_to(self.folder)

    def start(self, variables: Mapping[str, Any]) -> Stack:
        """Start the stack, unless it is up with these Terraform variables, and return it.

        One process starts it while the others wait. When the start fails, it fails for all of them.
        """
        stack = Stack(self.state_dir, port=0, variables=variables)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            import fcntl  # noqa: PLC0415 - missing on Windows, where `up` raises the error
        except ImportError:
            stack.up()
            return stack
        failure = self.folder / "failure"
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if failure.exists():
                raise StackError(failure.read_text())
            if stack.ready() is None:
                try:
                    stack.up()
                except MusterError as error:
                    failure.write_text(describe(error))
                    raise
        return stack

    def end(self) -> None:
        """Stop the stack unless it is kept, and remove the session's folder."""
        try:
            if not self.kept:
                Stack(self.state_dir).down()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


# ---- messages


class _Mailbox(Generic[T]):
    """Messages that arrived at a place and were not returned yet."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._waiting: list[T] = []

    def receive(self, match: Callable[[T], bool] | None = None, *, timeout: float = RECEIVE_SECONDS) -> T:
        """Return the first message that `match` accepts, or the first message without `match`.

        Waits for at most `timeout` seconds, then raises `NotReceived`. Later calls return the other messages.
        """
        __tracebackhide__ = True
        deadline = time.monotonic() + timeout
        while True:
            for index, item in enumerate(self._waiting):
                if match is None or match(item):
                    return self._waiting.pop(index)
            left = deadline - time.monotonic()
            if left <= 0:
                others = f" Messages that do not match: {len(self._waiting)}." if self._waiting else ""
                raise NotReceived(f"No message reached {self._place} within {timeout:g} s.{others}")
            self._waiting += self._fetch(left)

    def _fetch(self, seconds: float) -> list[T]:
        """Return new messages. Wait for the first one for about `seconds` at most."""
        raise NotImplementedError


class UserClient(_Mailbox[ReceivedEnvelope]):
    """A connected client of one user: a `muster.Client` for synchronous tests.

    `receive` returns messages of the form of `schemas/envelope.schema.json`. `call` calls any other method of
    `Client`.
    """

    def __init__(self, url: str, issuer: TokenIssuer, user_id: str) -> None:
        """Connect. Raises the errors of `Client.__aenter__`, such as `HandshakeRefused`.

        Every broadcast that starts after it returns reaches this client.
        """
        __tracebackhide__ = True
        super().__init__(user_id)
        self.user_id = user_id
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"muster {user_id}", daemon=True)
        self._thread.start()
        self._client = Client(url, partial(issuer.issue, user_id))
        try:
            self._run(self._client.__aenter__())
        except BaseException:
            self.close()
            raise

    def call(self, method: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, **options: Any) -> T:
        """Call a method of `Client` and wait for its result: `client.call(Client.ping)`."""
        __tracebackhide__ = True
        return self._run(method(self._client, *arguments, **options))

    def send(self, message: Mapping[str, Any]) -> Message:
        """Send a client message such as {"action": "ping"}; return the reply, or raise `Refused`."""
        __tracebackhide__ = True
        return self.call(Client.send, message)

    def close(self) -> None:
        """Close the connection and wait until it is closed. Repeatable."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._client.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _fetch(self, seconds: float) -> list[ReceivedEnvelope]:
        with suppress(TimeoutError):
            return [self._run(self._next(seconds))]
        return []

    async def _next(self, seconds: float) -> ReceivedEnvelope:
        async with asyncio.timeout(seconds):
            async for message in self._client:
                return message
        raise ClientClosed(f"The client of {self.user_id} is closed.", fix="Connect another.")

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        __tracebackhide__ = True
        if self._loop.is_closed():
            coroutine.close()
            raise ClientClosed(f"The client of {self.user_id} is closed.", fix="Connect another.")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # after Ctrl-C the coroutine is still running
            raise


@dataclass(frozen=True)
class Notification:
    """A message of the offline topic, as a subscriber gets it.

    `body` has the form of `schemas/offline-notification.schema.json`. Filter policies read `attributes`.
    """

    body: OfflineNotification
    attributes: dict[str, str]

    @property
    def message(self) -> Envelope:
        """The message that the user has not received."""
        return self.body["message"]


class OfflineQueue(_Mailbox[Notification]):
    """Receives what the offline topic publishes from now on, through its own SQS queue and subscription.

    So it takes no message from other tests, or from a service that reads the deployed SQS queue.
    """

    def __init__(self, outputs: Outputs) -> None:
        """Create the SQS queue and subscribe it to the topic."""
        super().__init__("the offline topic's subscriber")
        self._sqs, self._sns = outputs.client("sqs"), outputs.client("sns")
        topic = outputs.offline_topic_arn
        name = f"muster-test-{uuid4().hex}"
        _arn, partition, _service, region, account, _topic = topic.split(":")
        arn = f"arn:{partition}:sqs:{region}:{account}:{name}"
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": arn,
            "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._url = self._sqs.create_queue(QueueName=name, Attributes={"Policy": policy})["QueueUrl"]
        self._subscription = self._sns.subscribe(
            TopicArn=topic, Protocol="sqs", Endpoint=arn, ReturnSubscriptionArn=True
        )["SubscriptionArn"]

    def close(self) -> None:
        """Remove the subscription and the SQS queue."""
        self._sns.unsubscribe(SubscriptionArn=self._subscription)
        self._sqs.delete_queue(QueueUrl=self._url)
        self._sns.close()
        self._sqs.close()

    def _fetch(self, seconds: float) -> list[Notification]:
        received = self._sqs.receive_message(
            QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=min(_POLL_SECONDS, round(seconds))
        ).get("Messages", [])
        for message in received:
            self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        return [_notification(json.loads(message["Body"])) for message in received]


def _notification(published: Mapping[str, Any]) -> Notification:
    attributes = published.get("MessageAttributes", {})
    values = {name: attribute["Value"] for name, attribute in attributes.items()}
    return Notification(json.loads(published["Message"]), values)


def refusal_reason(outputs: Outputs, user_id: str, since: float) -> str | None:
    """Return why connect refused a user's handshake since a time.time(), as its log says; None if unknown."""
    group = outputs.log_groups.get("connect")
    if group is None:
        return None
    deadline = time.monotonic() + _LOG_SECONDS
    client = outputs.client("logs")
    while True:
        with suppress(BotoCoreError, ClientError):
            found = client.filter_log_events(logGroupName=group, startTime=int(since * 1000))["events"]
            for event in reversed(found):
                with suppress(ValueError):
                    entry = json.loads(event["message"])
                    if isinstance(entry, dict) and user_id in entry.values() and "reason" in entry:
                        return str(entry["reason"])
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)


class Users:
    """Users that exist during a test."""

    def __init__(self, outputs: Outputs) -> None:
        self._table = outputs.resource("dynamodb").Table(outputs.users_table)
        self._made: list[str] = []
        self._outputs = outputs

    def add(self, role: str = "resident", shelter_id: str | None = None, *, active: bool = True) -> User:
        """Write a new user with a unique id to the users table.

        Raises MusterError for a role that the deployment does not define.
        """
        __tracebackhide__ = True
        if self._roles and role not in self._roles:
            raise MusterError(
                f"The deployment does not define the role {role!r}.",
                fix=f"Use one of {', '.join(sorted(self._roles))}, or define it in `muster_variables`.",
            )
        user = User(f"user-{uuid4().hex[:12]}", role, shelter_id, active)
        self._table.put_item(Item=user.item())
        self._made.append(user.user_id)
        return user

    @cached_property
    def _roles(self) -> set[str]:
        """The roles that the function connect knows; none when the outputs do not name the function."""
        name = self._outputs.function_names.get("connect")
        if name is None:
            return set()
        settings = self._outputs.client("lambda").get_function_configuration(FunctionName=name)
        return set(json.loads(settings["Environment"]["Variables"]["ROLES"]))

    def close(self) -> None:
        """Delete the users."""
        while self._made:
            self._table.delete_item(Key={"userId": self._made.pop()})
        self._table.meta.client.close()
