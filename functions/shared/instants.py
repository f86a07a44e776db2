"""Instants as clients and rows hold them, and how long a handshake takes. Imports nothing of AWS."""

from datetime import UTC, datetime

HANDSHAKE_SECONDS = 10
"""`$connect` stores the row before API Gateway opens the socket. A connection younger than this may answer
410 for that reason alone: the post is repeated, and the row is kept."""


def iso(epoch_seconds: float) -> str:
    """An instant as clients see it: ISO 8601, UTC, milliseconds."""
    return (
        datetime.fromtimestamp(epoch_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def epoch(instant: str) -> float:
    """The epoch seconds of an ISO 8601 instant."""
    return datetime.fromisoformat(instant).timestamp()
