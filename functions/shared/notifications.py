"""Notifies users who missed a message through SNS, once per broadcast.

The connections of a user may be in different batches, pages, partitions and scopes, each with its own
Offline. These coordinate through one row per message and user in the `messages` table. Each Offline adds the
connections that it knows to have failed, and reads all that have. The one that completes the set finds no
live connection left, claims the user and publishes. A retried Offline has the same claim and may publish
again, so a user is notified at least once even if an invocation dies between claim and publish.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from functions.shared.errors import aws_code

PUBLISH_BATCH_ENTRIES = 10
PUBLISH_BATCH_BYTES = 250_000
"""A PublishBatch takes 10 messages and 256 KiB in total [SNS PublishBatch]. The margin is for attributes."""

PUBLISH_ATTEMPTS = 3
BATCH_GET_KEYS = 100
"""Keys in one BatchGetItem [DynamoDB]."""

WORKERS = 16
"""Users processed in parallel: each takes two or three calls of a few milliseconds."""


@dataclass
class Missed:
    """A user who missed a message, why, and the connections that failed (none for an absent user)."""

    user_id: str
    reason: str
    connection_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Counts:
    """How many users were notified, and how many SNS refused."""

    notified: int
    failed: int


def missed_users(undelivered: Iterable[Mapping[str, str]]) -> list[Missed]:
    """One `Missed` per user from the entries of an `offline-batch`, which are one per connection.

    Skips entries without a user id.
    """
    users: dict[str, Missed] = {}
    for entry in undelivered:
        if not (user_id := entry.get("userId")):
            continue
        missed = users.setdefault(user_id, Missed(user_id, entry["reason"]))
        if "connectionId" in entry:
            missed.connection_ids.append(entry["connectionId"])
    return list(users.values())


class Notifier:
    """Decides which users to notify, and publishes to SNS."""

    def __init__(
        self,
        dynamodb: Any,
        sns: Any,
        *,
        connections_table: str,
        users_table: str,
        messages_table: str,
        topic_arn: str,
        retention_seconds: int,
    ) -> None:
        """`dynamodb` and `sns` are low-level clients; claims are kept for `retention_seconds`."""
        self._dynamodb = dynamodb
        self._sns = sns
        self._connections_table = connections_table
        self._users_table = users_table
        self._messages_table = messages_table
        self._topic_arn = topic_arn
        self._retention_seconds = retention_seconds

    def notify(self, batch: Mapping[str, Any]) -> Counts:
        """Notify the users of an `offline-batch` who have no other live connection and no other claim."""
        missed = missed_users(batch["undelivered"])

        def claim(user: Missed) -> bool:
            return self._claim(user, batch["messageId"], batch["claim"])

        with ThreadPoolExecutor(max_workers=WORKERS) as threads:
            claimed = list(threads.map(claim, missed))
        mine = [user for user, is_mine in zip(missed, claimed, strict=True) if is_mine]
        profiles = self._profiles([user.user_id for user in mine])
        message = json.loads(batch["envelope"])
        entries = [
            notification(message, user, profiles.get(user.user_id, {}), str(n)) for n, user in enumerate(mine)
        ]
        refused = self._publish(entries)
        return Counts(notified=len(mine) - refused, failed=refused)

    def _claim(self, user: Missed, message_id: str, claim: str) -> bool:
        # One partition per user: a partition takes 1,000 writes/s, and an outage affects many users
        # [DynamoDB limits]. The prefix names stored rows, so it cannot be changed.
        key = {"audience": {"S": f"handover#{user.user_id}"}, "messageId": {"S": message_id}}
        change = "SET #ttl = :ttl"
        values: dict[str, Any] = {":ttl": {"N": str(int(time.time()) + self._retention_seconds)}}
        if user.connection_ids:
            change += " ADD failedConnections :ids"
            values[":ids"] = {"SS": user.connection_ids}
        row = self._dynamodb.update_item(
            TableName=self._messages_table,
            Key=key,
            UpdateExpression=change,
            ExpressionAttributeNames={"#ttl": "ttl"},
            ExpressionAttributeValues=values,
            ReturnValues="ALL_NEW",
        )["Attributes"]
        if self._has_other_connection(user.user_id, set(row.get("failedConnections", {}).get("SS", ()))):
            return False
        try:
            self._dynamodb.update_item(
                TableName=self._messages_table,
                Key=key,
                UpdateExpression="SET claimedBy = :claim",
                ConditionExpression="attribute_not_exists(claimedBy) OR claimedBy = :claim",
                ExpressionAttributeValues={":claim": {"S": claim}},
            )
        except ClientError as error:
            if aws_code(error) == "ConditionalCheckFailedException":
                return False
            raise
        return True

    def _has_other_connection(self, user_id: str, failed: set[str]) -> bool:
        pages = self._dynamodb.get_paginator("query").paginate(
            TableName=self._connections_table,
            IndexName="UserIndex",
            KeyConditionExpression="userId = :user",
            FilterExpression="#ttl > :now",
            ProjectionExpression="connectionId",
            ExpressionAttributeNames={"#ttl": "ttl"},
            ExpressionAttributeValues={":user": {"S": user_id}, ":now": {"N": str(int(time.time()))}},
        )
        return any(row["connectionId"]["S"] not in failed for page in pages for row in page["Items"])

    def _profiles(self, user_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Role and shelter of the users that exist, by user id. Subscribers filter on them."""
        profiles: dict[str, dict[str, str]] = {}
        for start in range(0, len(user_ids), BATCH_GET_KEYS):
            keys = [{"userId": {"S": user_id}} for user_id in user_ids[start : start + BATCH_GET_KEYS]]
            request = {
                self._users_table: {
                    "Keys": keys,
                    "ProjectionExpression": "userId, #role, shelterId",
                    "ExpressionAttributeNames": {"#role": "role"},
                }
            }
            while request:
                answer = self._dynamodb.batch_get_item(RequestItems=request)
                for item in answer["Responses"].get(self._users_table, ()):
                    # SNS refuses empty attributes, and an attribute of a row may be null.
                    row = {name: value["S"] for name, value in item.items() if value.get("S")}
                    profiles[row["userId"]] = row
                request = answer.get("UnprocessedKeys", {})
        return profiles

    def _publish(self, entries: list[dict[str, Any]]) -> int:
        """Publish all, and return how many SNS still refused after PUBLISH_ATTEMPTS.

        The pause before a retry is for all entries together, so the time does not grow with their number.
        """
        for attempt in range(PUBLISH_ATTEMPTS):
            if attempt:
                time.sleep(0.2 * 2**attempt)
            refused: set[str] = set()
            for group in _publishable(entries):
                answer = self._sns.publish_batch(TopicArn=self._topic_arn, PublishBatchRequestEntries=group)
                refused |= {failure["Id"] for failure in answer.get("Failed", ())}
            entries = [entry for entry in entries if entry["Id"] in refused]
            if not entries:
                break
        return len(entries)


def notification(
    message: Mapping[str, Any], user: Missed, profile: Mapping[str, str], identifier: str
) -> dict[str, Any]:
    """A PublishBatch entry: an `offline-notification` body, and attributes for filter policies."""
    attributes = {"type": message["type"], "reason": user.reason, **profile, "userId": user.user_id}
    body = {"message": message, "reason": user.reason, "userId": user.user_id}
    return {
        "Id": identifier,
        "Message": json.dumps(body, ensure_ascii=False, separators=(",", ":")),
        "MessageAttributes": {
            name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
        },
    }


def _publishable(entries: Sequence[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    """The entries in groups that one PublishBatch takes."""
    group: list[dict[str, Any]] = []
    size = 0
    for entry in entries:
        length = len(json.dumps(entry, ensure_ascii=False).encode())
        if group and (len(group) == PUBLISH_BATCH_ENTRIES or size + length > PUBLISH_BATCH_BYTES):
            yield group
            group, size = [], 0
        group.append(entry)
        size += length
    if group:
        yield group
