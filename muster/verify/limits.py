"""Limits that checks compare with, in bytes and seconds."""

FRAME_BYTES = 32 * 1024
"""The largest frame. [API Gateway WebSocket quotas]"""

ENVELOPE_BYTES = 30 * 1024
"""The largest message as it is delivered. [docs/protocol.md]"""

IDLE_SECONDS = 600
"""A pong's `idleTimeoutSeconds`: API Gateway's idle timeout. [API Gateway WebSocket quotas]"""

ROLL_OVER_SECONDS = 115 * 60
"""From a pong's `connectedAt` to its `reconnectBy`: five minutes before API Gateway's limit of two hours."""

WARM_UPS = 20
WARM_UP_SECONDS = 15.0
"""Broadcasts before the one that `fallback` measures, and how long each may take to the run's SQS queue: five
minutes. SNS may take up to 15 minutes to apply a new filter policy. [SNS, Subscription filter policies]"""

CLOSE_SECONDS = 10.0
"""How long a closed connection may still count as open."""
