"""Recipients, gateways and the checks of every posted batch, for the fault tests without a stack."""

import time
from collections.abc import Sequence
from uuid import uuid4

from functions.shared.posting import batch
from functions.shared.posting.gateway import Gateway, Outcome, Posted, Recipient
from tests.support.loopback import Session
from tests.support.proxy import FaultProxy, Post

BODY = '{"type":"alert","payload":{"text":"Überflutung 🌊"}}'.encode()

SETTLED_SECONDS = 600
"""The age of a connection that is past its handshake."""


def recipients(count: int, age: float = SETTLED_SECONDS) -> list[Recipient]:
    """Connections of this age, each of another user. Their ids end in "=", as on AWS."""
    since = time.time() - age
    return [Recipient(f"{uuid4().hex[:12]}=", f"user-{n}", since) for n in range(count)]


_made: list[Gateway] = []


def make_gateway(endpoint: str, concurrency: int = 16) -> Gateway:
    """A gateway that is closed at the end of the test."""
    _made.append(Gateway(endpoint, Session(), concurrency))
    return _made[-1]


def close_gateways() -> None:
    """Close the gateways made so far."""
    while _made:
        _made.pop().close()


def post(
    proxy: FaultProxy,
    audience: Sequence[Recipient],
    seconds: float = 20,
    gateway: Gateway | None = None,
) -> Posted:
    """Post to an audience through a proxy, and check the result against the posts that the proxy saw."""
    posted = (gateway or make_gateway(proxy.endpoint)).post(audience, BODY, time.monotonic() + seconds)
    assert_accounted(proxy, audience, posted)
    return posted


def assert_accounted(proxy: FaultProxy, audience: Sequence[Recipient], posted: Posted) -> None:
    """Check that every recipient has one outcome, in the order given, that follows from its last answer."""
    assert [recipient for recipient, _ in posted.outcomes] == list(audience)
    assert sum(posted.count(kind) for kind in ("delivered", "gone", "failed")) == len(audience)
    for recipient, outcome in posted.outcomes:
        seen = proxy.posts_to(recipient.connection_id)
        # The post of a dead kept connection is repeated without counting an attempt, once. A 429 of a used-up
        # quota uses up no attempt either.
        assert sum(post.act.status != 429 for post in seen) <= batch.ATTEMPTS + 1
        assert {post.body for post in seen} <= {BODY}
        assert outcome == outcome_of(seen, recipient.in_handshake()), (seen, recipient)


def outcome_of(posts: Sequence[Post], young: bool = False) -> Outcome:
    """The outcome that follows from the answers to one connection. `young` means it is in its handshake."""
    statuses = [
        None
        if post.answered is None or post.answered - post.arrived > batch.POST_TIMEOUT_SECONDS
        else post.act.status
        for post in posts
    ]
    if statuses[-1:] == [200]:
        return "delivered"
    return "gone" if statuses[-1:] == [410] and statuses.count(410) > 1 and not young else "failed"
