"""The time format of messages and rows: ISO 8601, UTC, milliseconds."""

from datetime import UTC, datetime


def iso(epoch_seconds: float) -> str:
    """Format epoch seconds, as in 2026-01-31T08:00:00.000Z."""
    return (
        datetime.fromtimestamp(epoch_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def epoch(instant: str) -> float:
    """Parse an ISO 8601 time into epoch seconds. Raises ValueError."""
    return datetime.fromisoformat(instant).timestamp()
