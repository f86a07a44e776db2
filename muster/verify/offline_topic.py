"""The offline topic: who else would get a run's notifications, and an SQS queue that reads them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from muster.local.seed import User
from muster.verify.aws import Aws
from muster.verify.filters import may_match
from muster.verify.ledger import Ledger, queue_arn

ReadReasons: TypeAlias = Callable[[str, int, float], Awaitable[dict[str, str]]]
"""Takes a message id, a number of users and seconds. Returns the reason of the notification about each user,
once that many have arrived or the time has passed."""


async def others_who_match(
    aws: Aws, users: Sequence[User], role: str, sender: Mapping[str, str]
) -> list[str]:
    """Return every subscription that would get a notification about these users.

    Each is named by its protocol and endpoint, or by its id where the endpoint is a person's address.
    """
    notes = [note for user in users for note in notifications(user, role, sender)]
    matching = []
    subscriptions = await aws.pages(
        "sns", "list_subscriptions_by_topic", "Subscriptions", TopicArn=aws.outputs.offline_topic_arn
    )
    for subscription in subscriptions:
        arn = subscription["SubscriptionArn"]
        if not arn.startswith("arn:"):
            continue  # not confirmed: it gets nothing
        answer = await aws.call("sns", "get_subscription_attributes", SubscriptionArn=arn)
        if any(may_match(answer["Attributes"], note) for note in notes):
            endpoint = subscription["Endpoint"]
            shown = endpoint if endpoint.startswith("arn:") else arn
            matching.append(f"{subscription['Protocol']} {shown.rpartition(':')[2]}")
    return matching


@contextlib.asynccontextmanager
async def subscribed_queue(
    aws: Aws, ledger: Ledger, name: str, users: Sequence[User]
) -> AsyncIterator[ReadReasons]:
    """Subscribe a new SQS queue to notifications about these users; yield the function that reads it.

    The ledger removes the queue and its subscription.
    """
    topic = aws.outputs.offline_topic_arn
    arn = queue_arn(topic, name)
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    await ledger.note(f"queue:{name}")
    made = await aws.call("sqs", "create_queue", QueueName=name, Attributes={"Policy": json.dumps(policy)})
    url = made["QueueUrl"]
    await aws.call(
        "sns",
        "subscribe",
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=arn,
        Attributes={"FilterPolicy": json.dumps({"userId": [user.user_id for user in users]})},
        ReturnSubscriptionArn=True,
    )

    async def read(message_id: str, count: int, seconds: float) -> dict[str, str]:
        reasons: dict[str, str] = {}
        deadline = time.monotonic() + seconds
        while len(reasons) < count and time.monotonic() < deadline:
            answer = await aws.call(
                "sqs", "receive_message", QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1
            )
            for entry in answer.get("Messages", ()):
                notification = json.loads(json.loads(entry["Body"])["Message"])
                if notification["message"]["id"] == message_id and "userId" in notification:
                    reasons[notification["userId"]] = notification["reason"]
                await aws.call("sqs", "delete_message", QueueUrl=url, ReceiptHandle=entry["ReceiptHandle"])
        return reasons

    yield read


def notifications(user: User, role: str, sender: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the attributes and bodies of every notification that a fallback about a user may publish."""
    message = {"type": "broadcast", "sender": sender}
    found = []
    for reason in ("gone", "failed", "absent"):
        attributes = {"type": "broadcast", "reason": reason, "role": role, "userId": user.user_id}
        body = {"reason": reason, "message": message, "userId": user.user_id}
        found.append({"attributes": attributes, "body": body})
    # When the offline function crashes, the state machines publish one that names no single user.
    attributes = {"type": "broadcast", "reason": "unreached"}
    found.append({"attributes": attributes, "body": {"reason": "unreached", "message": message}})
    return found
