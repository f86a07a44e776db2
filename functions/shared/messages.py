"""Messages: their ids, the envelope that clients receive, and the queue from which they resume."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID

from functions.shared.connections import Connection
from functions.shared.instants import iso
from functions.shared.telemetry import logger

MAX_ENVELOPE_BYTES = 30 * 1024
"""One envelope must fit one WebSocket frame, which API Gateway limits to 32 KB, also inside a `resumed`
message; the difference is room for that wrapper. [API Gateway WebSocket quotas]"""

MAX_RESUMED_BYTES = 32_000
"""A `resumed` message is one frame, kept under 32 KB however the K is read."""

ID_AHEAD_SECONDS = 10
ID_BEHIND_SECONDS = 30
"""How far the time in a message's id may lie after and before the start of its broadcast, which is a time of
the server's; other ids are refused. After it lies only what a sender's clock is fast; before it also the time
that a sender takes to repeat a call that starts a broadcast."""

RESUME_OVERLAP_SECONDS = 240
"""How much a resume reads again before the position that it is given.

A message that is recorded after a resume has read the queue must lie within this of every id that the resume
returned. Its id may be ID_BEHIND_SECONDS older than its broadcast, which may take all retries of Accept,
Claim and Record to record it; the id returned may be ID_AHEAD_SECONDS newer than the resume.
tests/contract/test_asl.py adds them up. Queries of the queue are consistent, so no index lags behind."""

RESUME_PAGE = 50
"""Messages read per audience and resume: a few full frames' worth of ordinary messages."""


def uuid7(epoch_seconds: float, entropy: bytes) -> str:
    """A UUIDv7 [RFC 9562]: 48 bits of milliseconds, then bits of `entropy` (10 bytes or more)."""
    milliseconds = int(epoch_seconds * 1000)
    value = milliseconds << 80 | int.from_bytes(entropy[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


def message_id(execution_id: str, started_at: float) -> str:
    """The id of the message that an execution broadcasts: the same however often it is asked for."""
    return uuid7(started_at, sha256(execution_id.encode()).digest())


def id_time(identifier: str) -> float:
    """The epoch seconds that a UUIDv7 carries."""
    return (UUID(identifier).int >> 80) / 1000


def serialise(message: Mapping[str, Any]) -> str:
    """A message as it travels: compact JSON in UTF-8, which keeps every script of the payload readable."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def envelope(request: Mapping[str, Any], identifier: str, sent_at: float) -> str:
    """The JSON text that every recipient gets for a valid broadcast request, byte for byte."""
    said = _said(request)
    return serialise({"type": said.pop("type"), "id": identifier, "sentAt": iso(sent_at), **said})


def digest(request: Mapping[str, Any]) -> str:
    """A SHA-256 (hex) of what a valid broadcast request says to its recipients, in any order of keys.

    It covers type, sender, payload and shelterId. Target, offline policy, id and time are left out: the same
    message may be sent again, later and to more people.
    """
    canonical = json.dumps(_said(request), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()


def _said(request: Mapping[str, Any]) -> dict[str, Any]:
    said = {
        "type": request["type"],
        "sender": request.get("sender", {"service": "unnamed"}),
        "payload": request["payload"],
    }
    if "shelterId" in request:
        said["shelterId"] = request["shelterId"]
    return said


@dataclass(frozen=True)
class Page:
    """Part of what a client missed: envelopes (JSON text), oldest first; no `cursor` means that was all."""

    envelopes: Sequence[str]
    cursor: str | None


class Queue:
    """Reads the `messages` table: what was said to an audience while somebody was away."""

    def __init__(self, dynamodb: Any, table: str) -> None:
        """`dynamodb` is a low-level client."""
        self._dynamodb = dynamodb
        self._table = table

    def missed(self, connection: Connection, after: str | None, cursor: str | None, room: int) -> Page:
        """What the connection's audiences were told after the id `after`, or from `cursor` on.

        Oldest first, each id once, at most `room` bytes of envelopes (at least one envelope, so that a
        client always gets on). With `after`, the RESUME_OVERLAP_SECONDS before it are read again, because a
        message with an older id may have been recorded later; a client drops the ids it has seen.
        With neither, everything that is retained.
        """
        start = cursor or (_id_before(after) if after else "")
        found: dict[str, str] = {}
        horizon: str | None = None
        for audience in audiences_of(connection):
            items, more = self._since(audience, start)
            found.update(items)
            if more:
                # Beyond the last id read here, another audience's later ids must wait their turn.
                last = items[-1][0]
                horizon = last if horizon is None else min(horizon, last)
        taken: list[str] = []
        last_taken, complete = start, True
        for identifier in sorted(found):
            size = len(found[identifier].encode()) + 1
            if (horizon and identifier > horizon) or (taken and size > room):
                complete = False
                break
            last_taken = identifier
            if not found[identifier]:
                reason = "envelope is not a string, or an empty one"
                logger.warning("queued message left out", extra={"messageId": identifier, "reason": reason})
                continue
            room -= size
            taken.append(found[identifier])
        return Page(taken, None if complete and horizon is None else last_taken)

    def _since(self, audience: str, start: str) -> tuple[list[tuple[str, str]], bool]:
        """The (id, envelope) pairs of an audience after the id `start`, and whether there are more."""
        items: list[tuple[str, str]] = []
        pages = self._pages(audience, start)
        for page in pages:
            items += [
                (item["messageId"]["S"], item.get("envelope", {}).get("S", "")) for item in page["Items"]
            ]
            more = "LastEvaluatedKey" in page
            # A page may hold only expired rows; read on until there is something to give.
            if items or not more:
                return items, more
        return items, False

    def _pages(self, audience: str, start: str) -> Iterator[dict[str, Any]]:
        arguments: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "audience = :audience AND messageId > :start",
            "FilterExpression": "#ttl > :now",
            "ExpressionAttributeNames": {"#ttl": "ttl"},
            "ExpressionAttributeValues": {
                ":audience": {"S": audience},
                ":start": {"S": start or "0"},
                ":now": {"N": str(int(time.time()))},
            },
            "Limit": RESUME_PAGE,
            "ConsistentRead": True,
        }
        while True:
            page = self._dynamodb.query(**arguments)
            yield page
            if "LastEvaluatedKey" not in page:
                return
            arguments["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def audiences_of(connection: Connection) -> list[str]:
    """The audience keys whose messages reach this connection."""
    keys = ["all", f"role#{connection.role}", f"user#{connection.user_id}"]
    return [*keys, f"shelter#{connection.shelter_id}"] if connection.shelter_id else keys


def _id_before(identifier: str) -> str:
    return uuid7(max(0, id_time(identifier) - RESUME_OVERLAP_SECONDS), bytes(10))
