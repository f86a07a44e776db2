"""What the in-process fault tests share: recipients, sessions, and what must hold of every posted batch."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from functions.shared.posting import gateway
from functions.shared.posting.gateway import Gateway, Outcome, Posted, Recipient
from tests.support.proxy import FaultProxy, Post

BODY = '{"type":"alert","payload":{"text":"Überflutung 🌊"}}'.encode()

SETTLED_SECONDS = 600
"""Age of a connection that is past its handshake."""


class Session:
    """As much of a botocore session as a gateway asks for. Its credentials may be replaced at any time."""

    def get_config_variable(self, name: str) -> str:
        return {"region": "eu-west-1"}[name]

    def __init__(self) -> None:
        self.access_key = "FIRST"

    def get_credentials(self) -> Any:
        frozen = SimpleNamespace(access_key=self.access_key, secret_key="secret", token=None)
        return SimpleNamespace(get_frozen_credentials=lambda: frozen)


def recipients(count: int, age: float = SETTLED_SECONDS) -> list[Recipient]:
    """Connections as old as this, each of a user of its own. Their ids end in "=", as on AWS."""
    since = time.time() - age
    return [Recipient(f"{uuid4().hex[:12]}=", f"user-{n}", since) for n in range(count)]


_made: list[Gateway] = []


def make_gateway(endpoint: str, concurrency: int = 16, session: Session | None = None) -> Gateway:
    """A gateway whose connections end with the test."""
    _made.append(Gateway(endpoint, session or Session(), concurrency))
    return _made[-1]


def close_gateways() -> None:
    """Close what the gateways made so far keep open; in a Lambda, it ends with the environment."""
    while _made:
        wires = _made.pop()._wires
        for wire in list(wires._watched):
            wires.drop(wire)
        wires._selector.close()
        wires._resolver.shutdown()


def post(
    proxy: FaultProxy,
    audience: Sequence[Recipient],
    seconds: float = 20,
    gateway: Gateway | None = None,
) -> Posted:
    """Post to an audience through a proxy, and hold what is reported to what was taken."""
    posted = (gateway or make_gateway(proxy.endpoint)).post(audience, BODY, time.monotonic() + seconds)
    assert_accounted(proxy, audience, posted)
    return posted


def assert_accounted(proxy: FaultProxy, audience: Sequence[Recipient], posted: Posted) -> None:
    """Everybody has one outcome, in the order given, and it is what the last post to them was answered."""
    assert [who for who, _ in posted.outcomes] == list(audience)
    assert sum(posted.count(kind) for kind in ("delivered", "gone", "failed")) == len(audience)
    for who, outcome in posted.outcomes:
        seen = proxy.posts_to(who.connection_id)
        # One more than the attempts: a kept connection that turned out to be dead is replaced at no charge.
        # And a crowded quota is waited for, whatever the attempts.
        assert sum(post.act.status != 429 for post in seen) <= gateway.ATTEMPTS + 1
        assert {post.body for post in seen} <= {BODY}
        assert outcome == outcome_of(seen, who.in_handshake()), (seen, who)


def outcome_of(posts: Sequence[Post], young: bool = False) -> Outcome:
    """What the answers to a batch's posts to one connection say about it; `young`: it is in its handshake."""
    statuses = [
        None
        if post.answered is None or post.answered - post.arrived > gateway.POST_TIMEOUT_SECONDS
        else post.act.status
        for post in posts
    ]
    if statuses[-1:] == [200]:
        return "delivered"
    return "gone" if statuses[-1:] == [410] and statuses.count(410) > 1 and not young else "failed"
