"""Messages: their ids, the envelope that clients receive, and the queue of missed messages."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID

from functions.shared.audiences import audience_keys_of
from functions.shared.connections import Connection
from functions.shared.instants import iso
from functions.shared.telemetry import logger

MAX_ENVELOPE_BYTES = 30 * 1024
"""An envelope must fit into one WebSocket frame of at most 32 KB, also inside a `resumed` message, which
needs the rest [API Gateway WebSocket quotas]."""

MAX_RESUMED_BYTES = 32_000
"""A `resumed` message is one frame, of at most 32 KB; this is less whether K is 1,000 or 1,024."""

ID_AHEAD_SECONDS = 10
ID_BEHIND_SECONDS = 30
"""How far the time in a message's id may be after and before the start of its broadcast by the server's
clock. Ids outside are rejected. A sender's clock may be fast or slow, and a sender that retries the call
that starts the broadcast keeps the id."""

RESUME_OVERLAP_SECONDS = 240
"""How far before its position a resume reads again.

A message that is recorded after a resume has read the queue must be within this of every id that the resume
returned. Its id may be ID_BEHIND_SECONDS older than its broadcast, which records it after all retries of
Accept, Claim and Record at the latest; the id returned may be ID_AHEAD_SECONDS newer than the resume.
tests/contract/test_asl.py adds these up. The queue is read with consistent queries, not through an index."""

RESUME_PAGE = 50
"""Messages read per audience and query: ordinary messages of this number fill a few frames."""

BEFORE_ALL_IDS = "0"
"""Sorts before every UUID."""


def uuid7(epoch_seconds: float, entropy: bytes) -> str:
    """A UUIDv7 [RFC 9562]: 48 bits of milliseconds, then bits of `entropy` (10 bytes or more)."""
    milliseconds = int(epoch_seconds * 1000)
    value = milliseconds << 80 | int.from_bytes(entropy[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


def message_id(execution_id: str, started_at: float) -> str:
    """The id of the message that an execution broadcasts; always the same for an execution."""
    return uuid7(started_at, sha256(execution_id.encode()).digest())


def id_time(identifier: str) -> float:
    """The epoch seconds that a UUIDv7 carries."""
    return (UUID(identifier).int >> 80) / 1000


def serialise(message: Mapping[str, Any]) -> str:
    """A message as compact JSON, in which text of every script stays readable."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def envelope(request: Mapping[str, Any], identifier: str, sent_at: float) -> str:
    """The JSON text that every recipient gets for a valid broadcast request, byte for byte."""
    content = _content(request)
    return serialise({"type": content.pop("type"), "id": identifier, "sentAt": iso(sent_at), **content})


def digest(request: Mapping[str, Any]) -> str:
    """A SHA-256 (hex) of the content of a valid broadcast request, whatever the order of its keys.

    It covers type, sender, payload and shelterId. It leaves out target, offline policy, id and time, because
    the same message may be sent again, later and to more people.
    """
    canonical = json.dumps(_content(request), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()


def _content(request: Mapping[str, Any]) -> dict[str, Any]:
    content = {
        "type": request["type"],
        "sender": request.get("sender", {"service": "unnamed"}),
        "payload": request["payload"],
    }
    if "shelterId" in request:
        content["shelterId"] = request["shelterId"]
    return content


@dataclass(frozen=True)
class Page:
    """A page of missed messages: envelopes (JSON text), oldest first; `cursor` is None on the last page."""

    envelopes: Sequence[str]
    cursor: str | None


@dataclass(frozen=True)
class _Part:
    """Messages of one audience after a position: (id, envelope) in the order of their ids.

    `end` is the last id that was read, or None if there are no more.
    """

    messages: Sequence[tuple[str, str]]
    end: str | None


class Queue:
    """Reads the `messages` table, from which clients get the messages they missed."""

    def __init__(self, dynamodb: Any, table: str) -> None:
        """`dynamodb` is a low-level client."""
        self._dynamodb = dynamodb
        self._table = table

    def missed(self, connection: Connection, after: str | None, cursor: str | None, room: int) -> Page:
        """The messages of the connection's audiences after the id `after`, or from `cursor` on.

        Oldest first, each id once, at most `room` bytes of envelopes, but at least one envelope so that a
        client always makes progress. With `after`, the RESUME_OVERLAP_SECONDS before it are read again,
        because a message with an older id may have been recorded later; a client drops the ids it has seen.
        With neither, everything that is retained.
        """
        start = cursor or (_id_before(after) if after else BEFORE_ALL_IDS)
        keys = audience_keys_of(
            user_id=connection.user_id, role=connection.role, shelter_id=connection.shelter_id
        )
        ready, end = _merge([self._read(key, start) for key in keys])
        page = ready[: _fitting(ready, room)]
        read_to = end if len(page) == len(ready) else page[-1][0]
        return Page([envelope for _, envelope in page], cursor=read_to)

    def _read(self, audience: str, start: str) -> _Part:
        """At least one message of an audience after the id `start`, unless there is none."""
        arguments: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "audience = :audience AND messageId > :start",
            "FilterExpression": "#ttl > :now",
            "ExpressionAttributeNames": {"#ttl": "ttl"},
            "ExpressionAttributeValues": {
                ":audience": {"S": audience},
                ":start": {"S": start},
                ":now": {"N": str(int(time.time()))},
            },
            "Limit": RESUME_PAGE,
            "ConsistentRead": True,
        }
        while True:
            answer = self._dynamodb.query(**arguments)
            messages = [
                (item["messageId"]["S"], item["envelope"]["S"])
                for item in answer["Items"]
                if _has_envelope(item)
            ]
            last_key = answer.get("LastEvaluatedKey")
            # A page whose rows have all expired is empty, and there may still be more.
            if messages or last_key is None:
                return _Part(messages, None if last_key is None else last_key["messageId"]["S"])
            arguments["ExclusiveStartKey"] = last_key


def _has_envelope(item: Mapping[str, Any]) -> bool:
    if item.get("envelope", {}).get("S"):
        return True
    reason = "envelope is not a string, or is empty"
    logger.warning("queued message skipped", extra={"messageId": item["messageId"]["S"], "reason": reason})
    return False


def _merge(parts: Sequence[_Part]) -> tuple[list[tuple[str, str]], str | None]:
    """The messages of all audiences whose order is certain, each once, and the last id read (None: all were).

    An audience that was not read to its end may have more messages right after its `end`, so later messages
    of other audiences must wait.
    """
    end = min((part.end for part in parts if part.end is not None), default=None)
    envelopes = {identifier: envelope for part in parts for identifier, envelope in part.messages}
    ready = sorted(identifier for identifier in envelopes if end is None or identifier <= end)
    return [(identifier, envelopes[identifier]) for identifier in ready], end


def _fitting(messages: Sequence[tuple[str, str]], room: int) -> int:
    """How many of the first messages fit into `room` bytes, with a comma each, but at least one."""
    size = 0
    for count, (_, envelope) in enumerate(messages):
        size += len(envelope.encode()) + len(",")
        if count and size > room:
            return count
    return len(messages)


def _id_before(identifier: str) -> str:
    return uuid7(max(0, id_time(identifier) - RESUME_OVERLAP_SECONDS), bytes(10))
