"""What travels, as types: the JSON objects that clients and services send and receive.

Each class has the properties of one schema in `schemas/`, which describes them and their limits.
"""

from typing import Any, Literal, NotRequired, TypedDict

MessageType = Literal["alert", "shelter_update", "broadcast"]
"""What kind of message it is."""

Offline = Literal["fallback", "always", "never"]
"""Which users a broadcast publishes to SNS: those it could not reach, its whole target as well, or none."""

ErrorCode = Literal[
    "invalid_json",
    "invalid_message",
    "unknown_action",
    "too_large",
    "forbidden",
    "unknown_connection",
    "token_invalid",
    "conflict",
    "internal",
]
"""What to branch on in an error reply; docs/protocol.md says what to do about each."""


class Sender(TypedDict):
    """Who sent a message: either `service`, or `userId` and `role`."""

    service: NotRequired[str]
    userId: NotRequired[str]
    role: NotRequired[str]


class Target(TypedDict):
    """The audience of a message: `all` alone, or at least one of the other three."""

    all: NotRequired[Literal[True]]
    roles: NotRequired[list[str]]
    users: NotRequired[list[str]]
    shelters: NotRequired[list[str]]


class Envelope(TypedDict):
    """A message as its recipients get it. Times are UTC in ISO 8601, and ids sort by time."""

    type: MessageType
    id: str
    sentAt: str
    sender: Sender
    payload: dict[str, Any]
    shelterId: NotRequired[str]


class ReceivedEnvelope(Envelope):
    """A message as `Client` yields it."""

    late: NotRequired[Literal[True]]
    """Present if a resume brought the message after a newer one was yielded. The server does not send it."""


class FaultEntry(TypedDict):
    """One thing that is wrong with a message. `pointer` is a JSON Pointer [RFC 6901]."""

    pointer: str
    problem: str
    fix: str


class Pong(TypedDict):
    """The reply to `ping`."""

    type: Literal["pong"]
    replyTo: str | None
    serverTime: str
    role: str
    shelterId: NotRequired[str]
    connectedAt: str
    expiresAt: str
    reconnectBy: str
    idleTimeoutSeconds: int


class Ack(TypedDict):
    """The reply to a message that starts a broadcast. `id` is the message's, `execution` is its name."""

    type: Literal["ack"]
    replyTo: str | None
    id: str
    execution: str


class Renewed(TypedDict):
    """The reply to `renew`."""

    type: Literal["renewed"]
    replyTo: str | None
    expiresAt: str
    role: str
    shelterId: NotRequired[str]


class Resumed(TypedDict):
    """The reply to `resume`: one page of missed messages, oldest first."""

    type: Literal["resumed"]
    replyTo: str | None
    messages: list[Envelope]
    more: bool
    cursor: str | None


class ErrorReply(TypedDict):
    """The reply to a message that the server refuses or fails to handle."""

    type: Literal["error"]
    replyTo: str | None
    code: ErrorCode
    message: str
    faults: NotRequired[list[FaultEntry]]


class PartitionEntry(TypedDict):
    """A part of an audience: a user, a shelter, or a shard of a role or of all connections."""

    scope: str
    value: str


class ReceiptOutput(TypedDict):
    """The output of a broadcast's execution; `muster.broadcaster.Receipt.parse` takes it."""

    id: str
    type: MessageType
    audience: int
    delivered: int
    gone: int
    failed: int
    offline: int
    offlineFailed: int
    pages: int
    retries: int
    partitions: int
    unreached: list[PartitionEntry]
    notified: bool
    startedAt: str
    durationMs: int


class OfflineNotification(TypedDict):
    """A message that the offline topic publishes, and why."""

    message: Envelope
    reason: Literal["gone", "failed", "absent", "always", "unreached"]
    userId: NotRequired[str]
    userIds: NotRequired[list[str]]
    partition: NotRequired[PartitionEntry]
    target: NotRequired[Target]


class BroadcastRequest(TypedDict):
    """The input of a broadcast's execution."""

    type: MessageType
    target: Target
    payload: dict[str, Any]
    shelterId: NotRequired[str]
    offline: NotRequired[Offline]
    sender: NotRequired[Sender]
    id: NotRequired[str]
