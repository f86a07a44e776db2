"""The client loses no message while the server fails, connections break, or the program closes or cancels."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection

from muster.client import Client, ClientClosed, ClientError, HandshakeRefused, Message, inbox, link
from muster.client import client as client_module
from tests.unit.muster.test_client import TOKEN, FakeGateway, asynchronous, envelope, everything, take


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "BACKOFF_BASE_SECONDS", 0.01)


def _stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pause before a reconnection outlast the test."""
    monkeypatch.setattr(client_module, "backoff", lambda failures: 3600.0)


def _longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)


def refusing(gateway: FakeGateway, action: str, code: str = "internal") -> None:
    """Let the gateway answer every `action` with an error."""

    async def refuse(connection: ServerConnection, message: Message) -> bool:
        if message["action"] != action:
            return False
        await gateway.error(connection, message, code)
        return True

    gateway.override = refuse


def silent(gateway: FakeGateway, action: str) -> None:
    """Let the gateway answer no `action`."""

    async def ignore(connection: ServerConnection, message: Message) -> bool:
        return bool(message["action"] == action)

    gateway.override = ignore


async def lose(gateway: FakeGateway) -> None:
    """Break the connection, and wait for the next."""
    handshakes = len(gateway.handshakes)
    gateway.open[0].transport.abort()
    await gateway.until(lambda: len(gateway.handshakes) > handshakes and len(gateway.open) == 1)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def _left_over() -> list[object]:
    """The client's tasks, and its timers that are not cancelled."""
    loop = asyncio.get_running_loop()
    tasks = [task for task in asyncio.all_tasks() if "muster" in repr(task.get_coro())]
    tasks += [task for task in asyncio.all_tasks() if "Link." in repr(task) or "Client." in repr(task)]
    timers = [
        timer
        for timer in getattr(loop, "_scheduled")  # noqa: B009 - no public way to see them
        if not timer.cancelled() and "Client" in repr(timer)
    ]
    return [*tasks, *timers]


# ---- a resume that fails


@pytest.mark.parametrize("code", ["internal", "throttled"])
@asynchronous
async def test_a_refused_resume_releases_messages_keeps_the_connection_and_is_repeated(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _longest_pauses(monkeypatch)
    gateway = FakeGateway()
    gateway.age = timedelta(minutes=1)
    async with gateway, Client(gateway.url, TOKEN) as client:
        start = client.position
        missed = [envelope(1, ago=2), envelope(2, ago=1)]
        gateway.retained += missed
        refusing(gateway, "resume", code)
        await lose(gateway)
        live = envelope(3)
        await gateway.post(live)
        assert await anext(client) == live
        await gateway.until(lambda: len(gateway.actions("resume")) == 5)
        assert client.position == start
        assert len(gateway.handshakes) == 2
        gateway.override = None
        assert [await anext(client), await anext(client)] == [message | {"late": True} for message in missed]
        assert len(gateway.handshakes) == 2
        assert await everything(client) == []


@asynchronous
async def test_pauses_between_refused_resumes_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    _longest_pauses(monkeypatch)
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN):
        refusing(gateway, "resume")
        await lose(gateway)
        loop = asyncio.get_running_loop()
        times: list[float] = []
        for asked in range(1, 7):
            while len(gateway.actions("resume")) < asked:
                gateway.changed.clear()
                await gateway.changed.wait()
            times.append(loop.time())
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(pause >= 0.01 * 2**number for number, pause in enumerate(pauses))
        assert len(gateway.handshakes) == 2


@asynchronous
async def test_a_resume_without_a_reply_holds_new_messages_for_a_short_time_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox, "HOLD_SECONDS", 0.05)
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        silent(gateway, "resume")
        await lose(gateway)
        await gateway.post(envelope(1))
        assert await take(client, 1) == [1]
        assert len(gateway.handshakes) == 2


@asynchronous
async def test_a_resume_without_a_reply_is_repeated_on_the_same_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "REPLY_TIMEOUT_SECONDS", 0.05)
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN):
        silent(gateway, "resume")
        await lose(gateway)
        await gateway.until(lambda: len(gateway.actions("resume")) == 3)
        assert len(gateway.handshakes) == 2


@asynchronous
async def test_a_ping_without_a_reply_replaces_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "REPLY_TIMEOUT_SECONDS", 0.05)
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN, heartbeat=0.02):
        silent(gateway, "ping")
        await gateway.until(lambda: len(gateway.handshakes) == 3)


@asynchronous
async def test_a_refused_ping_keeps_the_connection_and_what_comes_by_it() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN, heartbeat=0.01) as client:
        refusing(gateway, "ping")
        pings = len(gateway.actions("ping"))
        await gateway.until(lambda: len(gateway.actions("ping")) >= pings + 3)
        await gateway.post(envelope(1))
        assert await take(client, 1) == [1]
        assert len(gateway.handshakes) == 1


@asynchronous
async def test_closing_drops_nothing_that_waits_for_a_resume() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        silent(gateway, "resume")
        await lose(gateway)
        await gateway.until(lambda: gateway.actions("resume"))
        await gateway.post(envelope(1), envelope(2))
        await client.ping()
        await client.close()
        assert [message["payload"]["number"] async for message in client] == [1, 2]


@asynchronous
async def test_a_refused_reconnection_drops_nothing_that_waits_for_a_resume() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        silent(gateway, "resume")
        await lose(gateway)
        await gateway.until(lambda: gateway.actions("resume"))
        await gateway.post(envelope(1), envelope(2))
        await client.ping()
        gateway.refusals = [403]
        gateway.open[0].transport.abort()
        assert await take(client, 2) == [1, 2]
        with pytest.raises(HandshakeRefused):
            await anext(client)


# ---- connections that do not last


@asynchronous
async def test_the_backoff_grows_while_connections_close_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _longest_pauses(monkeypatch)

    async def pong_and_close(connection: ServerConnection, message: Message) -> bool:
        await gateway.reply(connection, message)
        await connection.close()
        return True

    async with FakeGateway() as gateway, Client(gateway.url, TOKEN):
        gateway.override = pong_and_close
        await gateway.open[0].close()
        # Pauses of 10, 20, 40 ... ms: 0.64 s until the eighth handshake. Without growth there are 60 by then.
        await asyncio.sleep(0.6)
        assert 4 <= len(gateway.handshakes) <= 7


@asynchronous
async def test_the_backoff_starts_again_after_a_connection_that_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def at_once(failures: int) -> float:
        asked.append(failures)
        return 0.0

    monkeypatch.setattr(client_module, "backoff", at_once)
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        for stable in (3600, 3600, 0, 0):
            monkeypatch.setattr(client_module, "STABLE_SECONDS", stable)
            await lose(gateway)
            await client.ping()
    assert asked == [1, 2, 1, 1]


# ---- closing and cancelling


@asynchronous
async def test_closing_during_a_reconnection_ends_everything_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _stall(monkeypatch)
    async with FakeGateway() as gateway:
        client = Client(gateway.url, TOKEN)
        await client.__aenter__()
        sending = asyncio.create_task(client.ping())
        reading = asyncio.create_task(anext(client))
        silent(gateway, "ping")
        await gateway.until(lambda: len(gateway.actions("ping")) == 2)
        gateway.open[0].transport.abort()
        await gateway.until(lambda: not gateway.open)
        late = asyncio.create_task(client.ping())
        await asyncio.sleep(0)
        async with asyncio.timeout(1):
            await client.close()
            for task in (sending, late):
                with pytest.raises(ClientClosed):
                    await task
            with pytest.raises(StopAsyncIteration):
                await reading
        assert _left_over() == []


@asynchronous
async def test_a_cancelled_close_ends_iteration() -> None:
    async with FakeGateway() as gateway:
        client = Client(gateway.url, TOKEN)
        await client.__aenter__()
        # A server that does not read answers no closing handshake either.
        gateway.open[0].transport.pause_reading()
        reading = asyncio.create_task(anext(client))
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        async with asyncio.timeout(1):
            with pytest.raises(StopAsyncIteration):
                await reading
            await client.close()
        assert _left_over() == []
        for connection in gateway.open:
            connection.transport.abort()


@asynchronous
async def test_a_cancelled_wait_for_a_message_loses_none() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        reading = asyncio.create_task(anext(client))
        await asyncio.sleep(0)
        await gateway.post(envelope(1))
        await client.ping()
        if not reading.done():
            reading.cancel()
        with suppress(asyncio.CancelledError):
            assert (await reading)["payload"]["number"] == 1
            return
        assert await take(client, 1) == [1]


@pytest.mark.parametrize("steps", range(0, 60, 3))
@asynchronous
async def test_entering_may_be_cancelled_at_any_await(steps: int) -> None:
    async with FakeGateway() as gateway:
        entering = asyncio.create_task(Client(gateway.url, TOKEN).__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        entering.cancel()
        with suppress(asyncio.CancelledError):
            await (await entering).close()
        await until(lambda: not gateway.open)
        assert _left_over() == []


@asynchronous
async def test_nothing_is_left_after_closing() -> None:
    async with FakeGateway() as gateway:
        async with Client(gateway.url, TOKEN) as client:
            silent(gateway, "resume")
            await lose(gateway)
            await gateway.until(lambda: gateway.actions("resume"))
            assert _left_over() != []
        assert _left_over() == []
        await until(lambda: not gateway.open)
        assert client._links == set()


# ---- everything at once

STEP = st.sampled_from(
    # The hard ones come more often: a loss or a refusal just before something else.
    [
        "post",
        "post",
        "miss",
        "lose",
        "lose",
        "lose and post",
        "refuse resume",
        "serve resume",
        "refuse handshake",
        "cut resume",
        "send",
        "cancel send",
        "take",
        "cancel take",
        "yield",
        "yield",
        "pause",
    ]
)
END = st.sampled_from(["close", "cancel close", "lose and close", "refused", "serve"])


class Scene:
    """A client and a server, and what became of each message and request."""

    def __init__(self, gateway: FakeGateway, client: Client) -> None:
        self.gateway, self.client = gateway, client
        self.sent: list[Message] = []
        self.yielded: list[int] = []
        self.senders: list[asyncio.Task[Any]] = []

    async def post(self, *, arrives: bool = True) -> None:
        self.sent.append(envelope(len(self.sent) + 1))
        self.gateway.retained.append(self.sent[-1])
        for connection in self.gateway.open if arrives else ():
            with suppress(Exception):
                await connection.send(link.encode_frame(self.sent[-1]))

    def lose(self) -> None:
        for connection in self.gateway.open:
            connection.transport.abort()

    async def take(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                self.yielded.append((await anext(self.client))["payload"]["number"])

    async def step(self, name: str) -> None:
        match name:
            case "post":
                await self.post()
            case "miss":
                await self.post(arrives=False)
            case "lose":
                self.lose()
            case "lose and post":
                self.lose()
                await self.post()
            case "refuse resume":
                refusing(self.gateway, "resume")
            case "serve resume":
                self.gateway.override = None
            case "cut resume":
                self.gateway.override = self._cut_resume
            case "refuse handshake":
                self.gateway.refusals.append(503)
            case "send" | "cancel send":
                self.senders.append(asyncio.create_task(self.client.send({"action": "alert"}, timeout=5)))
                await asyncio.sleep(0)
                if name == "cancel send":
                    self.senders.pop().cancel()
            case "take":
                await self.take(0.005)
            case "cancel take":
                await self.take(0)
            case "yield":
                await asyncio.sleep(0)
            case "pause":
                await asyncio.sleep(0.003)

    async def _cut_resume(self, connection: ServerConnection, message: Message) -> bool:
        """Break the connection after the first page of a resume."""
        if "cursor" in message:
            connection.transport.abort()
            self.gateway.override = None
            return True
        return False

    async def end(self, name: str) -> None:
        numbers = {sent["payload"]["number"] for sent in self.sent}
        self.gateway.refusals.clear()
        self.gateway.override = None
        if name == "serve":
            while set(self.yielded) != numbers:
                self.yielded.append((await anext(self.client))["payload"]["number"])
        if name in ("lose and close", "refused"):
            self.gateway.refusals = [403] if name == "refused" else []
            self.lose()
        if name == "refused":
            with suppress(HandshakeRefused):
                while True:
                    self.yielded.append((await anext(self.client))["payload"]["number"])
        if name == "cancel close":
            closing = asyncio.create_task(self.client.close())
            await asyncio.sleep(0)
            closing.cancel()
        await self.client.close()
        with suppress(HandshakeRefused):
            self.yielded += [message["payload"]["number"] async for message in self.client]
        for outcome in await asyncio.gather(*self.senders, return_exceptions=True):
            assert isinstance(outcome, dict | ClientError)
        assert len(self.yielded) == len(set(self.yielded))
        assert _left_over() == []
        # A later client with the position gets the rest.
        async with Client(self.gateway.url, TOKEN, position=self.client.position) as later:
            rest: set[int] = set()
            while rest | set(self.yielded) != numbers:
                rest.add((await anext(later))["payload"]["number"])
        await until(lambda: not self.gateway.open)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=25), end=END)
def test_any_interleaving_loses_nothing_repeats_nothing_and_ends(steps: Sequence[str], end: str) -> None:
    async def play() -> None:
        async with asyncio.timeout(10), FakeGateway() as gateway:
            client = Client(gateway.url, TOKEN, heartbeat=0.02)
            await client.__aenter__()
            scene = Scene(gateway, client)
            for name in steps:
                await scene.step(name)
            await scene.end(end)

    random.seed(0)
    asyncio.run(play())
