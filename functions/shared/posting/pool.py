"""The pool: the HTTP connections (wires) to one endpoint, which outlive a call of `Gateway.post`.

It opens a wire when one is needed, reuses the one that was used last, waits for all of them with one
selector, and looks up the endpoint's name.
"""

import itertools
import selectors
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from functions.shared.posting.wire import Address, Wire

IDLE_SECONDS = 20
"""A wire that was idle for longer is closed instead of reused. It may have died unnoticed, most likely while
Lambda had the environment frozen."""

ADDRESS_SECONDS = 60
"""How long the result of a name look-up is used: the TTL of API Gateway's DNS records."""

LOOK_UP_SECONDS = 3.0
"""How long the first name look-up may take."""

LOOK_UP_AGAIN_SECONDS = 0.2
"""The pause between two look-ups when the first one failed or is still running."""


class Pool:
    """The wires to one endpoint.

    A released wire can be taken again after the next `wait`, unless `wait` reports it: bytes that follow an
    answer must not be read as the answer to the next request.
    """

    def __init__(self, endpoint: str) -> None:
        """Open no connection yet. `endpoint` is `https://host[:port]/stage`."""
        url = urlsplit(endpoint)
        self._host = url.hostname or ""
        self._port = url.port or {"https": 443, "http": 80}[url.scheme]
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._tls_session: ssl.SSLSession | None = None
        self._selector = selectors.DefaultSelector()
        self._watched: dict[Wire, int] = {}
        self._idle: list[tuple[float, Wire]] = []
        self._released: list[tuple[float, Wire]] = []
        self._resolver = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resolver")
        self._addresses: Iterator[Address] | None = None
        self._addresses_until = 0.0
        self._no_look_up_until = 0.0
        self._look_up: Future[Any] | None = None

    def start_batch(self) -> None:
        """Mark the wires of earlier batches as kept, and check them in the next `wait` before reuse."""
        self._released, self._idle = self._idle + self._released, []
        for _, wire in self._released:
            wire.kept = True

    def take(self, now: float, deadline: float, new: bool) -> Wire | None:
        """Return an idle wire, or else a new one. Return None if one becomes idle in the next `wait`.

        With `new`, always open a new one, and close an idle one in exchange. Raises one of BROKEN when the
        host has no address.
        """
        if new:
            for _, spare in (self._idle or self._released)[:1]:
                self.drop(spare)
        else:
            while self._idle:
                idle_since, wire = self._idle.pop()
                if now - idle_since < IDLE_SECONDS:
                    return wire
                self.drop(wire)
            if self._released:
                return None
        if now >= self._addresses_until and now >= self._no_look_up_until:
            self._resolve(now, deadline)
        if self._addresses is None:
            raise OSError(f"no address of {self._host} is known")
        return Wire(next(self._addresses), self._host, self._tls, self._tls_session)

    def _resolve(self, now: float, deadline: float) -> None:
        """Look up the host. Keep the known addresses until a look-up succeeds.

        `getaddrinfo` cannot be interrupted and may take longer than the batch, so it runs in a thread and a
        later call may read its result. Only the first look-up blocks. Raises one of BROKEN while no address
        is known.
        """
        self._no_look_up_until = now + LOOK_UP_AGAIN_SECONDS
        if self._look_up is None:
            self._look_up = self._resolver.submit(
                socket.getaddrinfo, self._host, self._port, type=socket.SOCK_STREAM
            )
        timeout = 0 if self._addresses else max(0, min(LOOK_UP_SECONDS, deadline - now))
        try:
            entries = self._look_up.result(timeout=timeout)
        except TimeoutError:
            if self._addresses is None:
                raise
            return
        except OSError:
            self._look_up = None
            if self._addresses is None:
                raise
            return
        self._look_up = None
        self._addresses = itertools.cycle([(entry[0], entry[4]) for entry in entries])
        self._addresses_until, self._no_look_up_until = now + ADDRESS_SECONDS, 0.0

    def watch(self, wire: Wire) -> None:
        """Let `wait` return the wire when its socket is ready for what it wants."""
        watched = self._watched.get(wire)
        if watched is None:
            self._selector.register(wire, wire.wants, wire)
        elif watched != wire.wants:
            self._selector.modify(wire, wire.wants, wire)
        self._watched[wire] = wire.wants

    def wait(self, seconds: float) -> list[Wire]:
        """Wait at most this long for a wire to be ready. Return those that are."""
        ready = [key.data for key, _ in self._selector.select(max(0, seconds))]
        self._idle += self._released
        self._released = []
        return ready

    def release(self, wire: Wire) -> None:
        """Keep a wire whose answer is complete for the next request, or close it if it is not reusable."""
        if not wire.reusable:
            self.drop(wire)
            return
        self._tls_session = self._tls_session or wire.tls_session()
        wire.kept = False
        self._released.append((time.monotonic(), wire))

    def drop_idle(self) -> None:
        """Close the wires that carry no request."""
        for _, wire in self._idle + self._released:
            self.drop(wire)

    def drop(self, wire: Wire) -> None:
        """Close a wire, idle or not."""
        if self._watched.pop(wire, None) is not None:
            self._selector.unregister(wire)
        for free in self._idle, self._released:
            free[:] = [entry for entry in free if entry[1] is not wire]
        wire.close()

    def close(self) -> None:
        """Close all wires, the selector and the resolver's thread."""
        for wire in list(self._watched):
            self.drop(wire)
        self._selector.close()
        self._resolver.shutdown(wait=False, cancel_futures=True)
