"""What a caller gives to `Gateway.post`, and what it gets back."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from functions.shared.instants import epoch

Outcome = Literal["delivered", "gone", "failed"]
"""The end of one recipient:

    delivered   API Gateway accepted the message for the connection (200)
    gone        the connection is closed: it answered 410 twice, past its handshake
    failed      rejected (4xx), or still failing when the attempts or the time ran out
"""

HANDSHAKE_SECONDS = 10
"""`$connect` stores the row before API Gateway opens the WebSocket. Until then a post answers 410, so a 410
from a connection younger than this does not mean that it is closed."""


@dataclass(frozen=True)
class Recipient:
    """A WebSocket connection to post to. `connected_at` is in epoch seconds."""

    connection_id: str
    user_id: str
    connected_at: float

    def in_handshake(self) -> bool:
        """Whether the WebSocket may still be opening, by this machine's clock. See HANDSHAKE_SECONDS."""
        return time.time() - self.connected_at < HANDSHAKE_SECONDS

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """Read a `connections` entry of a delivery batch.

        Raises ValueError, which names the field, when the row lacks what `$connect` stores.
        """
        user_id = row.get("userId")
        if not isinstance(user_id, str) or not user_id:
            raise ValueError("userId is missing or not a string")
        try:
            connected_at = epoch(row["connectedAt"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError("connectedAt is missing or not an ISO 8601 time") from error
        return cls(row["connectionId"], user_id, connected_at)


@dataclass(frozen=True)
class Pace:
    """The rate limit of a batch: `credit` posts at once, then `rate` posts a second."""

    rate: float
    credit: float


@dataclass
class Posted:
    """The result of a batch. `outcomes` contains every recipient once, in the order given."""

    outcomes: list[tuple[Recipient, Outcome]]
    retries: int = 0
    throttled: int = 0
    """The number of 429 answers, including those of posts that succeeded later."""

    def count(self, outcome: Outcome) -> int:
        """The number of recipients with this outcome."""
        return sum(1 for _, other in self.outcomes if other == outcome)
