"""Helpers for tests of the functions: tokens, events, schema checks and messages."""

import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from functions.shared.posting import batch
from functions.shared.settings import Permission
from tests.support.schemas import conforming

SECRET = "a secret of the forty-eight bytes that HS384 asks for, and some more for HS512"
ISSUER, AUDIENCE = "muster", "muster"
STATE_MACHINE = "arn:aws:states:eu-west-1:000000000000:stateMachine:muster-broadcast"
TOPIC = "arn:aws:sns:eu-west-1:000000000000:muster-offline"

ROLES = {
    "admin": Permission(frozenset({"broadcast", "alert", "shelter_update"}), False),
    "shelter_operator": Permission(frozenset({"shelter_update"}), True),
    "first_responder": Permission(frozenset({"alert"}), False),
    "resident": Permission(frozenset(), False),
}

properties = settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""Hypothesis settings without a time limit for single examples, because the machine may be busy."""


TIMEOUTS = ("POST_TIMEOUT_SECONDS", "SLOW_SECONDS", "SLOW_TIMEOUT_SECONDS", "REVIEW_SECONDS")
"""The constants of `batch` that say how long it waits for answers."""


def shorten_timeouts(monkeypatch: pytest.MonkeyPatch, post_timeout: float) -> None:
    """Set the timeout of a post, in seconds, and scale the other timeouts in proportion."""
    factor = post_timeout / batch.POST_TIMEOUT_SECONDS
    for name in TIMEOUTS:
        monkeypatch.setattr(batch, name, factor * getattr(batch, name))


def token(
    user: str = "u1", key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **claims: Any
) -> str:
    """A JWT for `user`; claims that are None are omitted."""
    now = int(time.time())
    body = {"sub": user, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 3600} | claims
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode(body, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def leaks(secret: str, text: str) -> bool:
    """Whether `text` contains a token or a part of it."""
    return any(part in text for part in secret.split(".") if len(part) >= 8)


@dataclass
class Keys:
    """Credentials, as botocore's frozen ones."""

    access_key: str
    secret_key: str
    token: str | None


def event(body: Any = None, kind: str = "MESSAGE", **fields: Any) -> dict[str, Any]:
    """An event of a WebSocket route as from API Gateway; a body that is not text is converted to JSON."""
    text = body if isinstance(body, str | None) else json.dumps(body)
    return {"requestContext": {"connectionId": "c1=", "eventType": kind}, "body": text, **fields}


@dataclass
class Context:
    """The part of the Lambda context that Powertools and the functions read."""

    function_name: str = "muster-function"
    memory_limit_in_mb: int = 128
    invoked_function_arn: str = "arn:aws:lambda:eu-west-1:000000000000:function:muster-function"
    aws_request_id: str = "request-1"
    remaining: int = 10_000

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining


def answered(message: dict[str, Any]) -> bool:
    """Whether a server message fits into one frame. It must follow its schema."""
    conforming(f"server-{message['type']}", message)
    return len(json.dumps(message, ensure_ascii=False, allow_nan=False).encode()) < 32 * 1024


FRAME_BYTES = 32 * 1024

UNITS = (
    '"{n}"',
    '"{n:x}é"',
    '"a b"',
    "{n}",
    "{n}.5",
    "1e{n}",
    "-0",
    "true",
    "null",
    "[]",
    "{{}}",
    "[{n}]",
    '{{"a":{n}}}',
    '"世{n}"',
    "[[[[[[[[[[[[[[[[[[[[{n}]]]]]]]]]]]]]]]]]]]]",
    "[" * 40 + "]" * 40,
    '"' + "\\u0000" * 40 + '"',
    '"' + "~/" * 100 + '"',
    "9" * 100,
    "0." + "123456789" * 90 + "e-300",
)
"""Items of hostile lists; `{n}` is replaced by a number to make each one different."""


@dataclass(frozen=True)
class Hostile:
    """A long text: `before`, the `units` in turn with commas between them, and `after`."""

    before: str
    units: tuple[str, ...]
    after: str

    def text(self, size: int = FRAME_BYTES) -> str:
        """The text, with as many units as fit into `size` bytes."""
        room = size - len((self.before + self.after).encode())
        parts: list[str] = []
        while True:
            part = self.units[len(parts) % len(self.units)].format(n=len(parts))
            room -= len(part.encode()) + 1
            if room < 0:
                return self.before + ",".join(parts) + self.after
            parts.append(part)


def hostile(start: str) -> st.SearchStrategy[Hostile]:
    """Objects that begin with `start`, such as `{"action":"alert",`."""
    lists = st.sampled_from(
        [
            '"target":{"users":[',
            '"target":{"roles":[',
            '"target":{"shelters":["s",',
            '"payload":{},"target":{"all":true,"users":[',
            '"target":{"all":true},"payload":{"a":[',
            '"target":[',
            '"payload":[',
            '"id":[',
            '"offline":[',
            '"shelterId":[',
            '"cursor":[',
        ]
    )
    objects = st.sampled_from(["", '"target":{', '"payload":{', '"target":{"all":true},"payload":{"a":{'])
    names = st.sampled_from(['"{n}":', '"{n}~/":', '"' + "k" * 300 + '{n}":', '"{n}\\u0000":'])
    units = st.sampled_from(UNITS)

    def closed(opening: str, *units: str) -> Hostile:
        left = (start + opening).count("{") - (start + opening).count("}")
        return Hostile(start + opening, units, ("]" if opening.endswith(("[", ",")) else "") + "}" * left)

    return st.builds(
        lambda at, several: closed(at, *several), lists, st.lists(units, min_size=1, max_size=3)
    ) | (st.builds(lambda at, name, unit: closed(at, name + unit), objects, names, units))


def cpu_seconds(work: Callable[[], Any], most: float) -> float:
    """CPU seconds of `work`: the first of five runs below `most`, or else the least."""
    taken = []
    for _ in range(5):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
        if taken[-1] < most:
            break
    return min(taken)


def peak_bytes(work: Callable[[], Any]) -> int:
    """The peak of the memory that `work` allocates."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
