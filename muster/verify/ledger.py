"""What a run of `muster verify` has made, and how it is removed.

Before a run makes anything, it writes the name into its ledger: a row of the messages table whose audience is
LEDGER and whose message id is the run's. When a run could not clean up, the next one finds its ledger.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from muster.aws import error_code
from muster.progress import Progress
from muster.verify.aws import Aws, reason

LEDGER = "muster-verify"
"""The audience of the ledgers. No broadcast uses it: real audiences contain `#`, or are `all`."""

STALE_SECONDS = 3600.0
"""Age at which another run's resources are removed. A run takes a few minutes."""


class Ledger:
    """The ledger of one run. `used` tells whether anything was written into it."""

    def __init__(self, aws: Aws, run: str) -> None:
        self._aws = aws
        self._run = run
        self._messages = aws.outputs.messages_table
        self.used = False

    async def note(self, *resources: str) -> None:
        """Write names, such as "user:ID", into the ledger. Call it before the resources are made."""
        self.used = True
        await self._aws.call(
            "dynamodb",
            "update_item",
            TableName=self._messages,
            Key=_key(self._run),
            UpdateExpression="SET startedAt = if_not_exists(startedAt, :now) ADD resources :names",
            ExpressionAttributeValues={
                ":now": {"N": str(int(time.time()))},
                ":names": {"SS": sorted(resources)},
            },
        )

    async def remove(self) -> list[str]:
        """Remove everything that this run has made; return what remains, with the reason."""
        return await self._remove(self._run)

    async def remove_stale(self, progress: Progress) -> list[str]:
        """Do the same for runs that began more than STALE_SECONDS ago."""
        rows = await self._aws.pages(
            "dynamodb",
            "query",
            "Items",
            TableName=self._messages,
            KeyConditionExpression="audience = :ledger",
            ExpressionAttributeValues={":ledger": {"S": LEDGER}},
        )
        left: list[str] = []
        for row in rows:
            if time.time() - float(row["startedAt"]["N"]) > STALE_SECONDS:
                run = row["messageId"]["S"]
                progress.step(f"Removing what {run} left behind")
                left += await self._remove(run)
        return left

    async def _remove(self, run: str) -> list[str]:
        """Remove what a run's ledger names, in the reverse order of making it, and then the ledger."""
        left: list[str] = []
        try:
            row = await self._aws.call(
                "dynamodb", "get_item", TableName=self._messages, Key=_key(run), ConsistentRead=True
            )
        except (BotoCoreError, ClientError) as error:
            return [f"{run}: the list of what it made cannot be read ({reason(error)})"]
        names = row.get("Item", {}).get("resources", {}).get("SS", ())
        removers = {
            "queue": self._remove_queue,
            "machine": self._remove_machine,
            "recorded": self._remove_recorded,
            "shelter": self._remove_shelter,
            "user": self._remove_user,
        }
        for kind, remove in removers.items():
            for name in sorted(name.partition(":")[2] for name in names if name.startswith(f"{kind}:")):
                try:
                    await remove(name, run)
                except (BotoCoreError, ClientError) as error:
                    left.append(f"{kind} {name} ({reason(error)})")
        if not left and row.get("Item"):
            try:
                await self._delete(self._messages, _key(run))
            except (BotoCoreError, ClientError) as error:
                left.append(f"the list of what {run} made ({reason(error)})")
        return left

    async def _remove_queue(self, name: str, _run: str) -> None:
        """Remove an SQS queue of a run, and its subscription before it."""
        topic = self._aws.outputs.offline_topic_arn
        endpoint = queue_arn(topic, name)
        subscriptions = await self._aws.pages(
            "sns", "list_subscriptions_by_topic", "Subscriptions", TopicArn=topic
        )
        for subscription in subscriptions:
            if subscription["Endpoint"] == endpoint and subscription["SubscriptionArn"].startswith("arn:"):
                await self._aws.call("sns", "unsubscribe", SubscriptionArn=subscription["SubscriptionArn"])
        try:
            url = (await self._aws.call("sqs", "get_queue_url", QueueName=name))["QueueUrl"]
        except ClientError as error:
            # SQS answers with two names for it: of the JSON protocol, and of the query protocol.
            if "NonExistentQueue" in error_code(error) or "QueueDoesNotExist" in str(error):
                return
            raise
        await self._aws.call("sqs", "delete_queue", QueueUrl=url)

    async def _remove_machine(self, arn: str, _run: str) -> None:
        # Step Functions answers success for a machine that does not exist [DeleteStateMachine].
        await self._aws.call("stepfunctions", "delete_state_machine", stateMachineArn=arn)

    async def _remove_recorded(self, audience: str, run: str) -> None:
        """Delete the messages of a run from the queue of an audience that contains real people.

        The run is the sender of its messages.
        """
        rows = await self._aws.pages(
            "dynamodb",
            "query",
            "Items",
            TableName=self._messages,
            KeyConditionExpression="audience = :audience",
            ProjectionExpression="messageId, envelope",
            ExpressionAttributeValues={":audience": {"S": audience}},
            ConsistentRead=True,
        )
        for row in rows:
            if f'"{run}"' in row.get("envelope", {}).get("S", ""):
                await self._forget(audience, row["messageId"]["S"])

    async def _remove_shelter(self, shelter_id: str, _run: str) -> None:
        # A run's shelter is only an id: a row in the shelters table would reach the readers of its stream.
        await self._forget_audience(f"shelter#{shelter_id}")

    async def _remove_user(self, user_id: str, run: str) -> None:
        outputs = self._aws.outputs
        key = {"userId": {"S": user_id}}
        row = await self._aws.call(
            "dynamodb", "get_item", TableName=outputs.users_table, Key=key, ConsistentRead=True
        )
        if "Item" in row and row["Item"].get("verifyRun") != {"S": run}:
            return  # a real person, whose id a token command gave
        connections = await self._aws.pages(
            "dynamodb",
            "query",
            "Items",
            TableName=outputs.connections_table,
            IndexName="UserIndex",
            KeyConditionExpression="userId = :user",
            ExpressionAttributeValues={":user": {"S": user_id}},
        )
        for connection in connections:
            await self._delete(outputs.connections_table, {"connectionId": connection["connectionId"]})
        for audience in ("user", "handover"):
            await self._forget_audience(f"{audience}#{user_id}")
        await self._delete(outputs.users_table, key)

    async def _forget_audience(self, audience: str) -> None:
        rows = await self._aws.pages(
            "dynamodb",
            "query",
            "Items",
            TableName=self._messages,
            KeyConditionExpression="audience = :audience",
            ProjectionExpression="messageId",
            ExpressionAttributeValues={":audience": {"S": audience}},
        )
        for row in rows:
            await self._forget(audience, row["messageId"]["S"])

    async def _forget(self, audience: str, identifier: str) -> None:
        """Delete a recorded message, and the digest that binds its id."""
        for key in (audience, f"id#{identifier}"):
            await self._delete(self._messages, {"audience": {"S": key}, "messageId": {"S": identifier}})

    async def _delete(self, table: str, key: Mapping[str, Any]) -> None:
        await self._aws.call("dynamodb", "delete_item", TableName=table, Key=key)


def queue_arn(topic_arn: str, name: str) -> str:
    """Return the ARN of an SQS queue in the account and region of a topic."""
    _arn, partition, _service, region, account, _topic = topic_arn.split(":")
    return f"arn:{partition}:sqs:{region}:{account}:{name}"


def _key(run: str) -> dict[str, Any]:
    return {"audience": {"S": LEDGER}, "messageId": {"S": run}}
