"""Several clients at once, what each of them received, and how that compares with what was sent.

The demo and `muster verify` stand on it. That a client received nothing else is known without waiting: after
the last receipt each client sends a ping. Frames of one connection are ordered, so whatever was posted to a
client has arrived when the pong does.
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
"""Handshakes or pings in flight: the emulator passes each through one warm Lambda process, in turn."""

HANDSHAKE_LIMIT_MS = 2_000.0
BROADCAST_LIMIT_MS = 3_000.0
"""From StartExecution to the last arrival at 50 clients, once the Lambdas run."""

MS_PER_FURTHER_CLIENT = 10.0

RECEIPT_SECONDS = 60.0
ARRIVAL_SECONDS = 30.0


@dataclass(frozen=True)
class Timing:
    """How long something took over several samples, in milliseconds."""

    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Self:
        """Summarise at least one sample, by nearest rank."""
        samples = sorted(1000 * second for second in seconds)
        rank = {percent: samples[ceil(percent / 100 * len(samples)) - 1] for percent in (50, 99, 100)}
        return cls(*(round(value, 1) for value in rank.values()))


def broadcast_limit_ms(clients: int) -> float:
    """Return the limit from StartExecution to the last arrival, which grows with the clients beyond 50."""
    return BROADCAST_LIMIT_MS + MS_PER_FURTHER_CLIENT * max(0, clients - 50)


def compare(
    expected: Mapping[str, Collection[str]], received: Mapping[str, Collection[str]], names: Mapping[str, str]
) -> list[str]:
    """Return a sentence for each difference between who should have got each message and who did.

    Both map message ids to clients; `names` describes the messages that were sent.
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
    """One client and what it received: message ids with the time of arrival.

    `position` is where the next client of the same listener goes on.
    """

    name: str
    user: User
    received: dict[str, float] = field(default_factory=dict)
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
        """Close the client and take in everything that arrived before."""
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
            arrival.set()


class Listeners:
    """A client for each of `users`, open inside `async with`. A user may have several."""

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
            # The first waits for a Lambda to start, and nobody else behind it.
            await connect(self.all[0])
            async with asyncio.TaskGroup() as group:
                for listener in self.all[1:]:
                    group.create_task(connect(listener))
        except BaseException as error:
            await self._close()
            raise error.exceptions[0] if isinstance(error, ExceptionGroup) else error from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def open(self, listener: Listener) -> None:
        """Connect a listener, from its position on."""
        user_id = listener.user.user_id
        client = Client(self._url, lambda: self._token(user_id), position=listener.position)
        await listener.open(client, self._arrival)

    def of(self, user_id: str) -> Listener:
        """Return the first listener of a user."""
        return next(listener for listener in self.all if listener.user.user_id == user_id)

    def expect(self, identifier: str, name: str, listeners: Iterable[Listener]) -> None:
        """Note that a message was sent, and to whom; `differences` compares with it."""
        self._names[identifier] = name
        self._expected[identifier] = {listener.name for listener in listeners}

    async def arrivals(self, identifier: str, listeners: Sequence[Listener]) -> None:
        """Wait until a message is at every listener, or long enough to be sure that it will not come."""
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS):
                while any(identifier not in listener.received for listener in listeners):
                    self._arrival.clear()
                    await self._arrival.wait()
        except TimeoutError:
            return

    async def settle(self) -> None:
        """Return when everything that was posted to any open client has arrived."""
        limit = asyncio.Semaphore(AT_ONCE)

        async def ping(listener: Listener) -> None:
            async with limit:
                await listener.send({"action": "ping"})

        await asyncio.gather(*(ping(listener) for listener in self.all if listener.client))

    def differences(self, *, others: bool = False) -> list[str]:
        """Return a sentence for each message that is missing, astray or doubled.

        `others` says that the deployment is in use: messages that were not noted do not count, nor does what
        came twice, because delivery is at least once.
        """
        received: dict[str, set[str]] = {}
        for listener in self.all:
            for identifier in listener.received:
                if identifier in self._expected or not others:
                    received.setdefault(identifier, set()).add(listener.name)
        problems = compare(self._expected, received, self._names)
        if others:
            return problems
        twice = [
            f"{listener.name} got {listener.duplicates} messages twice"
            for listener in self.all
            if listener.duplicates
        ]
        return problems + twice

    async def _close(self) -> None:
        await asyncio.gather(*(listener.close() for listener in self.all))
