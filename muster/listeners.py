"""Many clients at once: what each one receives, compared with what was sent.

The demo and `muster verify` use it. To prove that a client received nothing else, it sends a ping after the
last receipt: frames of one connection arrive in order, so every earlier post arrives before the pong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from types import TracebackType
from typing import Any, Self

from muster.broadcaster import Broadcaster, BroadcastTimeout, Execution, Receipt
from muster.client import Client, Message
from muster.local.seed import User
from muster.progress import Progress

AT_ONCE = 16
"""Handshakes or pings in flight. More gain nothing: the emulator has one Lambda process for each function."""

HANDSHAKE_LIMIT_MS = 2_000.0
BROADCAST_LIMIT_MS = 3_000.0
"""From StartExecution to the last arrival at 50 clients, with warm Lambdas."""

MS_PER_FURTHER_CLIENT = 10.0

RECEIPT_SECONDS = 60.0
ARRIVAL_SECONDS = 30.0


@dataclass(frozen=True)
class Timing:
    """Durations of several samples, in milliseconds."""

    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Self:
        """Summarise at least one sample, by nearest rank."""
        samples = sorted(round(1000 * second, 1) for second in seconds)

        def percentile(percent: int) -> float:
            return samples[ceil(percent / 100 * len(samples)) - 1]

        return cls(p50_ms=percentile(50), p99_ms=percentile(99), max_ms=samples[-1])


def broadcast_limit_ms(clients: int) -> float:
    """Return the limit from StartExecution to the last arrival. It grows with each client beyond 50."""
    return BROADCAST_LIMIT_MS + MS_PER_FURTHER_CLIENT * max(0, clients - 50)


def compare(
    expected: Mapping[str, Collection[str]], received: Mapping[str, Collection[str]], names: Mapping[str, str]
) -> list[str]:
    """Return a sentence for each message that a client lacks, or got although it was not addressed.

    `expected` and `received` map message ids to clients; `names` maps message ids to descriptions.
    """
    problems = []
    for identifier in sorted(expected.keys() | received.keys()):
        name = names.get(identifier, f"a message that nobody sent ({identifier})")
        should, did = set(expected.get(identifier, ())), set(received.get(identifier, ()))
        if should - did:
            problems.append(f"{name}: nothing arrived at {some(should - did)}")
        if did - should:
            problems.append(f"{name}: arrived at {some(did - should)}, who are not addressed")
    return problems


def some(names: Collection[str], most: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    shown = sorted(names)[:most]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


async def wait_for_receipt(broadcaster: Broadcaster, execution: Execution) -> Receipt:
    """Return the receipt within RECEIPT_SECONDS. Waits in short turns: a thread cannot be interrupted."""
    deadline = time.monotonic() + RECEIPT_SECONDS
    while True:
        try:
            return await asyncio.to_thread(broadcaster.wait, execution, timeout=0.5)
        except BroadcastTimeout:
            if time.monotonic() > deadline:
                raise


@dataclass
class Listener:
    """A client of one user, and what it received: message ids with the time of arrival.

    After `close`, `position` is where the listener's next client resumes.
    """

    name: str
    user: User
    received: dict[str, float] = field(default_factory=dict)
    senders: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    duplicates: int = 0
    handshake_seconds: float = 0.0
    position: str | None = None
    client: Client | None = None
    collector: asyncio.Task[None] | None = None

    async def open(self, client: Client, arrival: asyncio.Event) -> None:
        """Connect `client`, and set `arrival` at each message."""
        await client.__aenter__()
        self.client = client
        self.handshake_seconds = client.handshake_seconds
        self.collector = asyncio.create_task(self._collect(client, arrival))

    async def close(self) -> None:
        """Close the client, after it received everything that arrived before."""
        if self.client and self.collector:
            await self.client.close()
            await self.collector
            self.duplicates += self.client.duplicates
            self.position = self.client.position
            self.client = None

    async def send(self, message: Mapping[str, Any]) -> Message:
        """Send a client message and return the reply to it."""
        if self.client is None:
            raise RuntimeError(f"{self.name} is not connected")
        return await self.client.send(message)

    async def _collect(self, client: Client, arrival: asyncio.Event) -> None:
        async for message in client:
            self.received.setdefault(message["id"], time.perf_counter())
            self.senders[message["id"]] = message.get("sender", {})
            arrival.set()


class Listeners:
    """A listener for each of `users`, connected inside `async with`. A user may have several."""

    def __init__(
        self, url: str, token: Callable[[str], str], users: Iterable[User], progress: Progress
    ) -> None:
        """`token` makes a token for a user id."""
        self._url = url
        self._token = token
        self._progress = progress
        self._arrival = asyncio.Event()
        self._expected: dict[str, set[str]] = {}
        self._names: dict[str, str] = {}
        self.all: list[Listener] = []
        taken: set[str] = set()
        for user in users:
            again = " (2)" if user.user_id in taken else ""
            taken.add(user.user_id)
            self.all.append(Listener(user.user_id + again, user))

    async def __aenter__(self) -> Self:
        self._progress.step(f"Connecting {len(self.all)} clients")
        limit = asyncio.Semaphore(AT_ONCE)
        connected = 0

        async def connect(listener: Listener) -> None:
            nonlocal connected
            async with limit:
                await self.open(listener)
            connected += 1
            self._progress.detail(f"{connected}/{len(self.all)}")

        try:
            await connect(self.all[0])  # starts the Lambda, so that the others meet a warm one
            async with asyncio.TaskGroup() as group:
                for listener in self.all[1:]:
                    group.create_task(connect(listener))
        except ExceptionGroup as errors:
            await self._close()
            # Callers expect one error, such as HandshakeRefused. Its cause names the others.
            raise errors.exceptions[0] from errors
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def open(self, listener: Listener) -> None:
        """Connect a listener, which resumes at its position."""
        user_id = listener.user.user_id
        client = Client(self._url, lambda: self._token(user_id), position=listener.position)
        await listener.open(client, self._arrival)

    def of(self, user_id: str) -> Listener:
        """Return the first listener of a user."""
        return next(listener for listener in self.all if listener.user.user_id == user_id)

    def expect(self, identifier: str, name: str, listeners: Iterable[Listener]) -> None:
        """Record a message and its addressees, for `differences`."""
        self._names[identifier] = name
        self._expected[identifier] = {listener.name for listener in listeners}

    async def arrivals(self, identifier: str, listeners: Sequence[Listener]) -> None:
        """Wait until every listener has received a message, for at most ARRIVAL_SECONDS."""
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS):
                while any(identifier not in listener.received for listener in listeners):
                    self._arrival.clear()
                    await self._arrival.wait()
        except TimeoutError:
            return

    async def settle(self) -> None:
        """Return once everything that was posted to the connected clients has arrived."""
        limit = asyncio.Semaphore(AT_ONCE)

        async def ping(listener: Listener) -> None:
            async with limit:
                await listener.send({"action": "ping"})

        await asyncio.gather(*(ping(listener) for listener in self.all if listener.client))

    def differences(self, *, own: Callable[[Mapping[str, Any]], bool] | None = None) -> list[str]:
        """Return a sentence for each message that is missing, went to the wrong client, or came twice.

        If other people use the deployment, `own` tells by a message's sender whether it counts. Then messages
        that came twice do not count, because delivery is at least once.
        """
        received: dict[str, set[str]] = {}
        for listener in self.all:
            for identifier in listener.received:
                if identifier in self._expected or own is None or own(listener.senders[identifier]):
                    received.setdefault(identifier, set()).add(listener.name)
        problems = compare(self._expected, received, self._names)
        if own is not None:
            return problems
        twice = [
            f"{listener.name} got {listener.duplicates} messages twice"
            for listener in self.all
            if listener.duplicates
        ]
        return problems + twice

    async def _close(self) -> None:
        await asyncio.gather(*(listener.close() for listener in self.all))
