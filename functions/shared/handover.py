"""Handing users who were not reached to SNS, once per broadcast however many connections they hold.

A user's connections may lie in different batches, pages, partitions and scopes, each with its own Offline.
They agree through one ledger row per message and user, kept in the `messages` table: every Offline first adds
the connections that it knows to have failed and gets back all that have, so the one that completes the set
sees that no live connection is left, claims the user, and publishes. A retried Offline carries the same claim
and may publish again: at least once, never lost between claim and publish.
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
"""A PublishBatch takes 10 messages and 256 KiB in all [SNS PublishBatch]; the rest is room for attributes."""

PUBLISH_ATTEMPTS = 3
BATCH_GET_KEYS = 100
"""Keys in one BatchGetItem [DynamoDB]."""

WORKERS = 16
"""Users looked at side by side: each costs two or three calls of a few milliseconds."""


@dataclass
class Missed:
    """A user who missed a message: why, and the connections that did not get it (none: the user had none)."""

    user_id: str
    reason: str
    connection_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class HandedOver:
    """How many users were published to SNS, and how many SNS refused."""

    offline: int
    failed: int


def missed_users(undelivered: Iterable[Mapping[str, str]]) -> list[Missed]:
    """One `Missed` a user from the entries of an `offline-batch`, which are one a connection.

    Entries that name no user are left out.
    """
    users: dict[str, Missed] = {}
    for entry in undelivered:
        if not (user_id := entry.get("userId")):
            continue
        missed = users.setdefault(user_id, Missed(user_id, entry["reason"]))
        if "connectionId" in entry:
            missed.connection_ids.append(entry["connectionId"])
    return list(users.values())


class Handover:
    """Decides who is to be handed over, and publishes them."""

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
        """`dynamodb` and `sns` are low-level clients; `retention_seconds` is how long the ledger is kept."""
        self._dynamodb = dynamodb
        self._sns = sns
        self._connections_table = connections_table
        self._users_table = users_table
        self._messages_table = messages_table
        self._topic_arn = topic_arn
        self._retention_seconds = retention_seconds

    def hand_over(self, batch: Mapping[str, Any]) -> HandedOver:
        """Publish those users of an `offline-batch` who hold no other live connection and are not claimed."""
        missed = missed_users(batch["undelivered"])
        with ThreadPoolExecutor(max_workers=WORKERS) as threads:
            claimed = list(
                threads.map(lambda user: self._claim(user, batch["messageId"], batch["claim"]), missed)
            )
        mine = [user for user, is_mine in zip(missed, claimed, strict=True) if is_mine]
        profiles = self._profiles([user.user_id for user in mine])
        message = json.loads(batch["envelope"])
        entries = [
            notification(message, user, profiles.get(user.user_id, {}), str(n)) for n, user in enumerate(mine)
        ]
        refused = self._publish(entries)
        return HandedOver(offline=len(mine) - refused, failed=refused)

    def _claim(self, user: Missed, message_id: str, claim: str) -> bool:
        # Keyed by user: a partition takes 1,000 writes/s, and an outage has many users [DynamoDB limits].
        key = {"audience": {"S": f"handover#{user.user_id}"}, "messageId": {"S": message_id}}
        ttl: dict[str, Any] = {":ttl": {"N": str(int(time.time()) + self._retention_seconds)}}
        change, values = "SET #ttl = :ttl", dict(ttl)
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
        """Role and shelter of the users that exist, for subscribers to filter on."""
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
                    # SNS refuses attributes that are empty, and a row may hold null for what is not known.
                    row = {name: value["S"] for name, value in item.items() if value.get("S")}
                    profiles[row["userId"]] = row
                request = answer.get("UnprocessedKeys", {})
        return profiles

    def _publish(self, entries: list[dict[str, Any]]) -> int:
        """Publish all, and return how many SNS still refused after PUBLISH_ATTEMPTS.

        They pause together, so that the function has the time for it however many they are.
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
    """A PublishBatch entry: an `offline-notification` body, and attributes to filter on."""
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
