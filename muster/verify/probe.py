"""One run of `muster verify`: its users, connections and broadcasts. Checks act only through it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from muster.aws import error_code
from muster.broadcaster import Broadcaster, Execution, MessageType, Offline, Receipt
from muster.errors import MusterError
from muster.listeners import Listeners, wait_for_receipt
from muster.local.seed import User
from muster.outputs import Outputs
from muster.progress import Progress
from muster.verify.aws import Aws, finished, reason
from muster.verify.ledger import Ledger
from muster.verify.nested import run_nested
from muster.verify.offline_topic import ReadReasons, others_who_match, subscribed_queue
from muster.verify.sockets import Socket, open_socket
from muster.verify.targets import PREFIX, Consent, RunUsers, check_target, shared_users_table
from muster.verify.tokens import Tokens

RUN_SECONDS = 15 * 60
"""How long a run may take, and so how long tokens must be valid. `fallback` may wait for five minutes."""

SLOW_SECONDS = 15 * 60
"""How much longer a run with slow checks may take."""

ENDING_SECONDS = 60.0
"""How long cleaning up waits for running broadcasts, so that they record nothing afterwards."""


class Probe(Aws):
    """A run. Entering it makes its users; leaving it removes everything that it made."""

    def __init__(
        self, outputs: Outputs, tokens: Tokens, users: RunUsers, progress: Progress, consent: Consent
    ) -> None:
        super().__init__(outputs)
        self.tokens = tokens
        self.progress = progress
        self.consent = consent
        self.users = users
        self.run = users.run
        self.sender = {"service": users.run}
        """The sender of the run's broadcasts. It tells its messages from those of others."""
        self.listeners = Listeners(outputs.websocket_url, tokens.issue, self.users.listeners, progress)
        self.broadcaster = Broadcaster.from_outputs(outputs)
        self.left: list[str] = []
        """What could not be removed, with the reason."""
        self.open = contextlib.AsyncExitStack()
        """What checks leave open for later checks. Cleaning up closes it first."""
        self.permissions: dict[str, Any] = {}
        """The deployment's roles, each with the actions that it may send. Read when the run begins."""
        self.role = PREFIX
        """The role of the run's users: `$connect` refuses a role that the deployment does not have."""
        self._ledger = Ledger(self, self.run)
        self._executions: set[Execution] = set()
        """Broadcasts that may still be running."""

    @property
    def local(self) -> bool:
        """Whether the deployment is on an emulator instead of AWS."""
        return self.outputs.endpoint_url is not None

    # ---- begin and end

    async def __aenter__(self) -> Probe:
        self._check_tokens()
        try:
            await self._check_users_table()
            await self._choose_role()
            self.left += await self._ledger.remove_stale(self.progress)
            self.progress.step("Making users")
            names = [f"user:{user.user_id}" for user in self.users.stored]
            await self.note(f"shelter:{self.users.shelter}", *names)
            for user in self.users.stored:
                await self._store(user)
            await self._check_unknown()
        except (BotoCoreError, ClientError) as error:
            await self.clean_up()
            raise MusterError(
                f"The run cannot begin: {reason(error)}.",
                fix="Check the credentials, and allow what `muster verify --dry-run` lists.",
            ) from error
        except BaseException:
            await self.clean_up()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.clean_up()

    async def clean_up(self) -> None:
        """Remove everything that this run made. What cannot be removed is in `left`. Repeatable."""
        self.progress.step("Removing what the run made")
        with contextlib.suppress(Exception):  # a client that ended with an error is closed anyway
            await self.open.aclose()
        deadline = time.monotonic() + ENDING_SECONDS
        for execution in self._executions:
            with contextlib.suppress(MusterError):
                await asyncio.to_thread(
                    self.broadcaster.wait, execution, timeout=max(0.1, deadline - time.monotonic())
                )
        self._executions.clear()
        if self._ledger.used:
            self.left += await self._ledger.remove()

    async def note(self, *resources: str) -> None:
        """Write names into the run's ledger. Call it before the resources are made."""
        await self._ledger.note(*resources)

    # ---- users

    def sent(self, sender: Mapping[str, Any]) -> bool:
        """Return whether a message with this sender is of this run."""
        own = {user.user_id for user in self.users.stored}
        return sender == self.sender or sender.get("userId") in own

    def _check_tokens(self) -> None:
        needed = RUN_SECONDS + (SLOW_SECONDS if self.consent.slow else 0)
        valid = self.tokens.first_expiry() - time.time()
        if valid < needed:
            raise MusterError(
                f"A token expires in {max(0.0, valid) / 60:.0f} minutes, and a run may take {needed // 60}.",
                fix="Have the token command print tokens that are valid for longer, or use fewer --clients: "
                "the command runs once for each.",
            )

    async def _check_users_table(self) -> None:
        if self.consent.users:
            return
        if shared := await finished(asyncio.to_thread(shared_users_table, self.outputs)):
            raise MusterError(
                f"{shared}: other systems may read the users of the run and act on them.",
                fix="Add --write-users (Consent(users=True)) if these systems may read test users.",
            )

    async def _check_unknown(self) -> None:
        """Raise MusterError if the user who must not exist does."""
        user_id = self.users.unknown.user_id
        answer = await self.call(
            "dynamodb", "get_item", TableName=self.outputs.users_table, Key={"userId": {"S": user_id}}
        )
        if "Item" in answer:
            raise _exists(user_id)

    async def _choose_role(self) -> None:
        """Choose the role with the fewest permissions for the run's users."""
        deployed = self.outputs.function_names.get("default")
        if deployed is None:
            raise MusterError(
                "The outputs do not name the functions.", fix="Export the outputs of this version."
            )
        configuration = await self.call("lambda", "get_function_configuration", FunctionName=deployed)
        self.permissions = roles_of(configuration)
        self.role = min(self.permissions, key=lambda role: (len(self.permissions[role]["actions"]), role))

    async def _store(self, user: User) -> None:
        """Store a user of this run; never replace an existing one."""
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
            raise _exists(user.user_id) from None

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

    def socket(
        self, token: str | None = None, *, query: str | None = None, subprotocols: Sequence[str] = ()
    ) -> contextlib.AbstractAsyncContextManager[Socket]:
        """Open a raw WebSocket; `token` is sent in the Authorization header, `query` in the address."""
        return open_socket(
            self.outputs.websocket_url,
            token,
            query=query,
            subprotocols=subprotocols,
            proxy=not self.local,
        )

    async def connections_of(self, user_id: str) -> list[dict[str, Any]]:
        """Return a user's connections, from the index that broadcasts read."""
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
        """Return a user's connections once there are `count`, or those there are after `seconds`."""
        deadline = time.monotonic() + seconds
        while len(rows := await self.connections_of(user_id)) != count and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        return rows

    async def forget_connection(self, connection_id: str) -> None:
        """Delete the row of a connection."""
        await self.call(
            "dynamodb",
            "delete_item",
            TableName=self.outputs.connections_table,
            Key={"connectionId": {"S": connection_id}},
        )

    async def pad_connection(self, connection_id: str, size: int) -> None:
        """Enlarge the row of a connection of this run by `size` bytes."""
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
        """Return once a query of the user's connections has a second page, or after `seconds`."""
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
        """Raise `UnsafeTarget` unless the target names only users and the shelter of this run."""
        check_target(target, self.users, self.consent)

    async def start(
        self,
        target: Mapping[str, Any],
        payload: Mapping[str, Any],
        *,
        type: MessageType = "broadcast",
        offline: Offline = "never",
        name: str | None = None,
    ) -> Execution:
        """Start a broadcast to this run's own users. By default it publishes nothing to SNS.

        What it records, and where, is noted before it starts: cleaning up then finds it whatever happens.
        """
        self.check_target(target)
        name = name or uuid4().hex
        audiences = ["all"] if "all" in target else [f"role#{role}" for role in target.get("roles", ())]
        if audiences:
            await self.note(*(f"recorded:{audience}" for audience in audiences))
        self.follow(self.broadcaster.execution(name))
        return await finished(
            asyncio.to_thread(
                self.broadcaster.start, type, target, payload, offline=offline, sender=self.sender, name=name
            )
        )

    def follow(self, execution: Execution) -> None:
        """Let cleaning up wait for an execution that records messages."""
        self._executions.add(execution)

    async def receipt(self, execution: Execution) -> Receipt:
        """Wait for a broadcast that was started or followed, and return its receipt."""
        receipt = await wait_for_receipt(self.broadcaster, execution)
        self._executions.discard(execution)
        return receipt

    async def run_nested(self, fanout_input: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        """Run fanout from a STANDARD machine; return the seconds it took, and its output."""
        return await run_nested(self, self._ledger, self.run, fanout_input)

    # ---- the offline topic

    async def others_who_match(self, users: Sequence[User]) -> list[str]:
        """Return every subscription that would get a notification about these users."""
        return await others_who_match(self, users, self.role, self.sender)

    def subscribed_queue(self, users: Sequence[User]) -> contextlib.AbstractAsyncContextManager[ReadReasons]:
        """Subscribe a new SQS queue to notifications about these users; yield the function that reads it."""
        return subscribed_queue(self, self._ledger, self.run, users)


def roles_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the deployment's roles from the default function's configuration.

    Lambda omits the variables for a caller who may not use the key that encrypts them.
    """
    text = configuration.get("Environment", {}).get("Variables", {}).get("ROLES")
    if text is None:
        raise MusterError(
            "The roles cannot be read from the default function's environment.",
            fix="Allow kms:Decrypt on the key of the functions, or use the version that is deployed.",
        )
    roles: dict[str, Any] = json.loads(text)
    return roles


def _exists(user_id: str) -> MusterError:
    return MusterError(
        f"The users table already has a user {user_id}, which a run must not change.",
        fix="Have the token command make tokens for users who are not in the table.",
    )


def _attribute(value: str | bool) -> dict[str, Any]:
    return {"BOOL": value} if isinstance(value, bool) else {"S": value}
