"""An asyncio WebSocket client: every message once, across lost connections and API Gateway's two hours.

    async with Client(url, token) as client:
        await client.alert({"roles": ["first_responder"]}, {"text": "Water at the north gate"})
        async for message in client:
            print(message["payload"])

`inbox` is the core without I/O, `link` one WebSocket, `client` the asyncio client that runs both, and
`errors` what it raises.

A token is sent in the handshake's Authorization header and in `renew` only. No log, repr or exception of the
client contains any part of it, or of the URL's query.
"""

from muster.client.client import ROTATION_SECONDS, STABLE_SECONDS, Client, Token
from muster.client.errors import (
    FINAL_CODES,
    ClientClosed,
    ClientError,
    HandshakeRefused,
    Refused,
    ReplyTimeout,
    TooLarge,
    Unreachable,
)
from muster.client.inbox import (
    BACKOFF_BASE_SECONDS,
    BACKOFF_CAP_SECONDS,
    ENVELOPE_TYPES,
    HEARTBEAT_SECONDS,
    HOLD_SECONDS,
    REMEMBERED_IDS,
    ROLLOVER_WINDOW,
    SETTLE_SECONDS,
    SHORTEST_LIFE_SECONDS,
    Inbox,
    Message,
    Session,
)
from muster.client.link import MAX_RECEIVED_BYTES, MAX_SENT_BYTES, REPLY_TIMEOUT_SECONDS

__all__ = [
    "BACKOFF_BASE_SECONDS",
    "BACKOFF_CAP_SECONDS",
    "ENVELOPE_TYPES",
    "FINAL_CODES",
    "HEARTBEAT_SECONDS",
    "HOLD_SECONDS",
    "MAX_RECEIVED_BYTES",
    "MAX_SENT_BYTES",
    "REMEMBERED_IDS",
    "REPLY_TIMEOUT_SECONDS",
    "ROLLOVER_WINDOW",
    "ROTATION_SECONDS",
    "SETTLE_SECONDS",
    "SHORTEST_LIFE_SECONDS",
    "STABLE_SECONDS",
    "Client",
    "ClientClosed",
    "ClientError",
    "HandshakeRefused",
    "Inbox",
    "Message",
    "Refused",
    "ReplyTimeout",
    "Session",
    "Token",
    "TooLarge",
    "Unreachable",
]
