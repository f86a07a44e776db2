"""Post one message to many WebSocket connections through API Gateway's `@connections` endpoint.

`Gateway.post` sends one body to all recipients of a batch, over kept-alive HTTP connections, from one thread
and without an event loop. docs/delivery.md has the measurements behind that choice.

This module is the package's public face. Behind it:

    recipients   what a caller gives and gets back
    batch        the loop of one call: send, read answers, retry
    pool         the HTTP connections that outlive a call
    wire         one HTTP connection
    signing      Signature Version 4
"""

import os
from collections.abc import Sequence
from typing import Any

from functions.shared.posting.batch import Batch
from functions.shared.posting.pool import Pool
from functions.shared.posting.recipients import Outcome, Pace, Posted, Recipient
from functions.shared.posting.signing import PostSigner

__all__ = ["Gateway", "Outcome", "Pace", "Posted", "Recipient"]


class Gateway:
    """The `@connections` endpoint of one API stage.

    Create it once and reuse it: its HTTP connections outlive a call. Not thread-safe.
    """

    def __init__(self, endpoint: str, session: Any, concurrency: int) -> None:
        """Open no connection yet.

        `endpoint` is `https://host/stage`. `session` is a botocore session, which provides the credentials
        and the region. `concurrency` is the maximum number of posts in flight, and so of HTTP connections.
        """
        self._endpoint = endpoint.rstrip("/")
        self._session = session
        self._concurrency = concurrency
        self._pool = Pool(self._endpoint)

    def post(
        self, recipients: Sequence[Recipient], body: bytes, deadline: float, pace: Pace | None = None
    ) -> Posted:
        """Post `body` to every recipient. Return when each has an outcome, or at the deadline.

        `deadline` is in seconds of `time.monotonic`, and at most five minutes ahead: all posts of a call are
        signed with the time of its start. What the deadline cuts off is reported as failed.

        - At least once: a post whose answer was lost may have been delivered, and is retried.
        - 429, 5xx, timeouts, resets, and 410 during the handshake are retried with full jitter, up to
          `batch.ATTEMPTS` posts per recipient. 429 is retried for longer when it hits many recipients
          (`batch.THROTTLED_SECONDS`).
        - A first 410 past the handshake is retried once, after `batch.GONE_AGAIN_SECONDS`.
        - No recipient blocks another: one that waits for a retry uses no HTTP connection, and one that does
          not answer uses only its own.
        - Retries count against the pace like first posts.
        """
        batch = Batch(
            self._pool,
            self._signer(body),
            body,
            concurrency=self._concurrency,
            deadline=deadline,
            pace=pace,
        )
        return batch.post(recipients)

    def close(self) -> None:
        """Close all HTTP connections. A Lambda function needs no call: they end with its environment."""
        self._pool.close()

    def _signer(self, body: bytes) -> PostSigner:
        credentials = self._session.get_credentials().get_frozen_credentials()
        trace_id = os.environ.get("_X_AMZN_TRACE_ID")  # changes with each invocation [Lambda, X-Ray]
        region = self._session.get_config_variable("region")
        return PostSigner(self._endpoint, region, credentials, body, trace_id=trace_id)
