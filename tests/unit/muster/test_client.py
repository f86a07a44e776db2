"""The WebSocket client against a small fake of the API, which loses, refuses and repeats messages."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import socket
import traceback
import urllib.error
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, ParamSpec, Self
from uuid import UUID

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from functions.shared.keys import KEY_LIFETIME_SECONDS
from muster.client import (
    Client,
    ClientClosed,
    ClientError,
    HandshakeRefused,
    Message,
    Refused,
    ReplyTimeout,
    TooLarge,
    Unreachable,
    inbox,
)
from muster.client import client as client_module

TOKEN = "head.claims.signature"
P = ParamSpec("P")


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a coroutine test, with a deadline for everything it waits on."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), timeout=20))

    return run


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "BACKOFF_BASE_SECONDS", 0.01)


def iso(instant: datetime) -> str:
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def envelope(number: int, *, ago: float = 0.0) -> Message:
    """A message whose id sorts by its number, sent `ago` seconds before now."""
    sent_at = datetime.now(UTC) - timedelta(seconds=ago)
    identifier = int(sent_at.timestamp() * 1000) << 80 | 0x7 << 76 | 0x2 << 62 | number
    return {
        "type": "alert",
        "id": str(UUID(int=identifier)),
        "sentAt": iso(sent_at),
        "sender": {"service": "test"},
        "payload": {"number": number},
    }


class FakeGateway:
    """Knows its connections, answers each action, and does what a test tells it to do wrong."""

    def __init__(self) -> None:
        self.open: list[ServerConnection] = []
        self.handshakes: list[str] = []
        self.received: list[Message] = []
        self.events: list[str] = []
        self.retained: list[Message] = []
        self.refusals: list[int] = []
        self.age = timedelta(0)
        self.life = timedelta(hours=2)
        self.role = "resident"
        self.page = 2
        self.changed = asyncio.Event()
        self.override: Callable[[ServerConnection, Message], Awaitable[bool]] | None = None
        """Handles a frame instead of the default answer, if it returns True."""

    async def __aenter__(self) -> Self:
        self._server: Server = await serve(self._serve, "127.0.0.1", 0, process_request=self._handshake)
        self.url = f"ws://127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}/live"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    def _handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(request.headers.get("Authorization", ""))
        if self.refusals:
            return connection.respond(HTTPStatus(self.refusals.pop(0)), "refused")
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        self.open.append(connection)
        self.events.append("opened")
        self.changed.set()
        with suppress(ConnectionClosed):
            async for frame in connection:
                message = json.loads(frame)
                self.received.append(message)
                self.changed.set()
                if self.override is None or not await self.override(connection, message):
                    await self.reply(connection, message)
        self.open.remove(connection)
        self.events.append("closed")
        self.changed.set()

    async def reply(self, connection: ServerConnection, message: Message) -> None:
        now = datetime.now(UTC)
        match message["action"]:
            case "ping":
                answer: Message = {
                    "type": "pong",
                    "serverTime": iso(now),
                    "role": self.role,
                    "connectedAt": iso(now - self.age),
                    "expiresAt": iso(now + timedelta(hours=24)),
                    "reconnectBy": iso(now + self.life),
                    "idleTimeoutSeconds": 600,
                }
            case "resume":
                if "cursor" in message:
                    cut = [kept for kept in self.retained if kept["id"] > message["cursor"]]
                else:
                    overlap = _time(message["after"]) - 30 if "after" in message else 0
                    cut = [kept for kept in self.retained if _time(kept["id"]) >= overlap]
                given = cut[: self.page]
                more = len(cut) > self.page
                answer = {
                    "type": "resumed",
                    "messages": given,
                    "more": more,
                    "cursor": given[-1]["id"] if more else None,
                }
            case "renew":
                answer = {"type": "renewed", "expiresAt": iso(now + timedelta(hours=1)), "role": self.role}
            case _:
                answer = {"type": "ack", "id": envelope(0)["id"], "execution": "e"}
        await connection.send(json.dumps(answer | {"replyTo": message["id"]}))

    async def error(self, connection: ServerConnection, message: Message, code: str, **more: Any) -> None:
        answer = {"type": "error", "code": code, "message": "No.", "replyTo": message["id"]} | more
        await connection.send(json.dumps(answer))

    async def post(self, *messages: Message) -> None:
        """Keep messages for resume and deliver them to every open connection."""
        for message in messages:
            self.retained.append(message)
            for connection in self.open:
                await connection.send(json.dumps(message))

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def actions(self, name: str) -> list[Message]:
        return [message for message in self.received if message["action"] == name]


def _time(identifier: str) -> float:
    return (UUID(identifier).int >> 80) / 1000


async def take(client: Client, count: int) -> list[int]:
    return [(await anext(client))["payload"]["number"] for _ in range(count)]


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def everything(client: Client) -> list[int]:
    """What iteration still yields after a barrier: a pong comes after all that was posted before it."""
    await client.ping()
    await client.close()
    return [message["payload"]["number"] async for message in client]


@asynchronous
async def test_messages_come_in_the_order_of_arrival_and_each_id_once() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        first, second = envelope(1), envelope(2)
        await gateway.post(second, first, second, first)
        assert await everything(client) == [2, 1]
        assert client.duplicates == 2


@asynchronous
async def test_a_post_that_a_resume_overtook_is_dropped_and_is_no_duplicate() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN, heartbeat=0.05) as client:
        overtaken = envelope(1)
        gateway.retained.append(overtaken)  # recorded; its post is under way
        assert await take(client, 1) == [1]
        await gateway.post(overtaken)
        assert await everything(client) == []
        assert client.duplicates == 0


@asynchronous
async def test_the_memory_for_duplicates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "REMEMBERED_IDS", 2)
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        first, second, third = envelope(1), envelope(2), envelope(3)
        await gateway.post(first, second, third, first)
        assert await everything(client) == [1, 2, 3, 1]


@asynchronous
async def test_each_send_gets_the_reply_that_answers_it() -> None:
    held: list[tuple[ServerConnection, Message]] = []

    async def answer_backwards(connection: ServerConnection, message: Message) -> bool:
        if message["action"] != "alert":
            return False
        held.append((connection, message))
        if len(held) == 2:
            for waiting in reversed(held):
                await gateway.reply(*waiting)
        return True

    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        gateway.override = answer_backwards
        one, two = await asyncio.gather(
            client.send({"action": "alert", "id": "one"}), client.send({"action": "alert", "id": "two"})
        )
        assert (one["replyTo"], two["replyTo"]) == ("one", "two")


@asynchronous
async def test_a_send_without_an_id_gets_one_of_its_own() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        replies = [await client.alert({"all": True}, {}) for _ in range(2)]
        assert replies[0]["replyTo"] != replies[1]["replyTo"]


@asynchronous
async def test_the_shorthands_send_what_the_schemas_say() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        await client.broadcast({"all": True}, {"a": 1}, offline="never")
        await client.shelter_update("north", {"beds": 3})
        await client.renew()
        sent = [{k: v for k, v in message.items() if k != "id"} for message in gateway.received[1:]]
        assert sent == [
            {"action": "broadcast", "target": {"all": True}, "payload": {"a": 1}, "offline": "never"},
            {"action": "shelter_update", "shelterId": "north", "payload": {"beds": 3}},
            {"action": "renew", "token": TOKEN},
        ]


@asynchronous
async def test_an_error_reply_raises_with_its_code_and_faults() -> None:
    faults = [{"pointer": "/target", "problem": "is missing", "fix": "add target"}]

    async def refuse(connection: ServerConnection, message: Message) -> bool:
        await gateway.error(connection, message, "invalid_message", faults=faults)
        return True

    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        gateway.override = refuse
        with pytest.raises(Refused, match="No") as refused:
            await client.send({"action": "alert"})
        assert refused.value.code == "invalid_message"
        assert refused.value.faults[0].pointer == "/target"
        assert refused.value.fix == "/target is missing: add target"


@asynchronous
async def test_an_invalid_request_id_is_refused() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        for identifier in ("", "a b", "x" * 65, "a\n", 7.5, 42, True, None):
            with pytest.raises(ClientError, match="cannot identify"):
                await client.send({"action": "ping", "id": identifier})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), json.loads("1e999"), {1, 2}, "\ud800"])
@asynchronous
async def test_a_value_that_json_cannot_represent_is_refused_with_its_pointer(value: object) -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        with pytest.raises(ClientError, match=r"^/payload/beds/1 ") as refused:
            await client.alert({"all": True}, {"beds": [1, value]})
        assert refused.value.fix
        await client.ping()
        assert not gateway.actions("alert")


@asynchronous
async def test_two_messages_with_one_id_at_a_time_are_refused() -> None:
    async def ignore(connection: ServerConnection, message: Message) -> bool:
        return True

    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        gateway.override = ignore
        first = asyncio.create_task(client.send({"action": "alert", "id": "one"}))
        await gateway.until(lambda: gateway.actions("alert"))
        with pytest.raises(ClientError, match="one is still waiting"):
            await client.send({"action": "alert", "id": "one"})
        await _cancel(first)


@asynchronous
async def test_no_reply_in_time_raises() -> None:
    async def ignore(connection: ServerConnection, message: Message) -> bool:
        return True

    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        gateway.override = ignore
        with pytest.raises(ReplyTimeout, match="alert") as late:
            await client.send({"action": "alert"}, timeout=0.05)
        assert gateway.actions("alert")[0]["id"] in (late.value.fix or "")


@asynchronous
async def test_a_message_over_one_frame_is_not_sent_and_the_connection_stays() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        await client.alert({"all": True}, {"text": "é" * 15_000})
        with pytest.raises(TooLarge):
            await client.alert({"all": True}, {"text": "é" * 16_400})
        await client.ping()
        assert len(gateway.actions("alert")) == len(gateway.handshakes) == 1


@asynchronous
async def test_the_token_is_sent_as_a_bearer_header() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN):
        assert gateway.handshakes == [f"Bearer {TOKEN}"]


@asynchronous
async def test_a_callable_gives_a_fresh_token_for_each_connection() -> None:
    tokens = iter(["first", "second"])

    async def fresh() -> str:
        return next(tokens)

    async with FakeGateway() as gateway, Client(gateway.url, fresh):
        await gateway.open[0].close()
        await gateway.until(lambda: len(gateway.handshakes) == 2)
        assert gateway.handshakes == ["Bearer first", "Bearer second"]


@asynchronous
async def test_no_log_error_or_repr_contains_the_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with FakeGateway() as gateway:
        client = Client(f"{gateway.url}?Authorization={TOKEN}", TOKEN)
        gateway.refusals = [401]
        with pytest.raises(HandshakeRefused) as refused:
            await client.__aenter__()
        async with Client(gateway.url, TOKEN) as connected:
            await connected.ping()
    shown = [
        record.getMessage() for record in caplog.records if not record.name.startswith("websockets.server")
    ]
    assert TOKEN not in "".join([repr(client), str(refused.value), str(refused.value.fix), *shown])


@asynchronous
async def test_white_space_around_a_token_is_ignored() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, lambda: f" {TOKEN}\r\n") as client:
        assert gateway.handshakes == [f"Bearer {TOKEN}"]
        await client.renew(f"{TOKEN}\n")
        assert gateway.actions("renew")[0]["token"] == TOKEN


@pytest.mark.parametrize(
    "token", ["", " \n", "hunter2\nhunter2", "hunter2\x00", "huntér2", "Bearer hunter2", b"hunter2", None]
)
@asynchronous
async def test_no_error_or_log_contains_a_part_of_an_invalid_token(
    token: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with FakeGateway() as gateway:
        for given in (token, lambda: token):
            with pytest.raises((ClientError, TypeError)) as refused:
                await Client(gateway.url, given).__aenter__()
            assert "hunt" not in "".join(traceback.format_exception(refused.value))
        async with Client(gateway.url, TOKEN) as client:
            if isinstance(token, str):
                with pytest.raises(ClientError, match="token"):
                    await client.renew(token)
        assert len(gateway.handshakes) == 1
    assert "hunt" not in caplog.text


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "fresh token"), (403, "active"), (404, "address"), (429, "again")]
)
@asynchronous
async def test_a_refused_handshake_has_the_status_and_a_fix(status: int, hint: str) -> None:
    async with FakeGateway() as gateway:
        gateway.refusals = [status]
        with pytest.raises(HandshakeRefused, match=str(status)) as refused:
            await Client(gateway.url, TOKEN).__aenter__()
    assert refused.value.status == status
    assert hint in (refused.value.fix or "")


@asynchronous
async def test_a_refused_connection_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="Connect call failed"):
            await Client(f"ws://127.0.0.1:{taken.getsockname()[1]}", TOKEN).__aenter__()


@asynchronous
async def test_a_server_that_takes_connections_but_fails_every_ping_is_unreachable() -> None:
    async def fail(connection: ServerConnection, message: Message) -> bool:
        await gateway.error(connection, message, "internal")
        return True

    async with FakeGateway() as gateway:
        gateway.override = fail
        with pytest.raises(Unreachable, match="does not answer"):
            await Client(gateway.url, TOKEN).__aenter__()
        await gateway.until(lambda: not gateway.open)


@asynchronous
async def test_another_scheme_is_unreachable_and_no_error_contains_the_query() -> None:
    with pytest.raises(Unreachable, match="wss://") as unreachable:
        await Client(f"https://example.org/live?Authorization={TOKEN}", TOKEN).__aenter__()
    assert TOKEN not in str(unreachable.value)


@pytest.mark.parametrize(
    "url",
    [
        "ws://127.0.0.1:99999/live",
        "ws://127.0.0.1:port/live",
        "ws://[::1/live",
        "ws://a..b/live",
        f"ws://{'a' * 64}.example/live",
        "ws://user:hunter2@127.0.0.1:1/live",
        "ws://hunter2@127.0.0.1:1/live",
        "ws://user:hunt?hunter2@127.0.0.1:1/live",
        "ws://user:hunter2/hunter2@127.0.0.1:1/live",
        "user:hunter2@127.0.0.1/live",
        "ws://127.0.0.1:1/live&Authorization=hunter2",
        "ws:///live?hunter2",
        "ws://127.0.0.1:1/live#hunter2",
        "ws://127.0.0.1 :1/live?hunter2",
        "ws://127.0.0.1:1/li\x00ve?hunter2",
        "ws://127.0.0.1:1/live?hunter2\r\nHost: hunter2",
        "ws://\ud800/live?hunter2",
        "//127.0.0.1:1/live?hunter2",
        "",
    ],
)
@asynchronous
async def test_an_invalid_address_is_unreachable_and_no_error_contains_its_secrets(url: str) -> None:
    client = Client(url, TOKEN)
    with pytest.raises(Unreachable) as unreachable:
        await client.__aenter__()
    shown = "".join(traceback.format_exception(unreachable.value)) + repr(client)
    shown.encode()
    assert "hunter2" not in shown


@asynchronous
async def test_an_invalid_proxy_is_unreachable_and_no_error_contains_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "gopher://user:hunter2@proxy.example:1")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(Unreachable, match="proxy") as unreachable:
        await Client("ws://muster.example/live", TOKEN).__aenter__()
    assert "hunter2" not in "".join(traceback.format_exception(unreachable.value))


@asynchronous
async def test_a_redirect_is_not_followed() -> None:
    def redirect(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(HTTPStatus.FOUND, "elsewhere")
        response.headers["Location"] = elsewhere.url
        return response

    async with (
        FakeGateway() as elsewhere,
        serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=redirect) as server,
    ):
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(HandshakeRefused, match="302"):
            await Client(f"ws://127.0.0.1:{port}/", TOKEN).__aenter__()
        assert elsewhere.handshakes == []


@asynchronous
async def test_pings_keep_the_connection_busy() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN, heartbeat=0.02):
        await gateway.until(lambda: len(gateway.actions("ping")) >= 4)
        assert len(gateway.handshakes) == 1


@asynchronous
async def test_after_a_loss_missed_messages_come_once_and_oldest_first_before_new_ones() -> None:
    gateway = FakeGateway()
    gateway.age = timedelta(minutes=1)
    async with gateway, Client(gateway.url, TOKEN) as client:
        await gateway.post(envelope(1, ago=3))
        assert await take(client, 1) == [1]
        missed = [envelope(number, ago=1) for number in range(2, 7)]
        new = envelope(9)

        async def speak_during_the_resume(connection: ServerConnection, message: Message) -> bool:
            if "after" in message:
                await connection.send(json.dumps(new))
                await connection.send(json.dumps(missed[0]))
            return False

        gateway.override = speak_during_the_resume
        gateway.retained += missed
        await gateway.open[0].close()
        assert await take(client, 6) == [2, 3, 4, 5, 6, 9]
        # The post of 1 proves nothing about those before it: the resume begins where the connection did.
        assert gateway.actions("resume")[0]["after"] < gateway.retained[0]["id"]
        assert len(gateway.actions("resume")) == 3
        assert await everything(client) == []


@asynchronous
async def test_a_loss_in_the_middle_of_a_resume_leaves_no_gap() -> None:
    gateway = FakeGateway()
    gateway.age = timedelta(minutes=1)
    async with gateway, Client(gateway.url, TOKEN) as client:
        new = envelope(9)

        async def hang_up_after_the_first_page(connection: ServerConnection, message: Message) -> bool:
            if "cursor" not in message:
                return False
            gateway.override = None
            # Were this newer message taken for the last one seen, the rest would never be asked for.
            await connection.send(json.dumps(new))
            await connection.close()
            return True

        await gateway.post(envelope(1, ago=40))
        gateway.override = hang_up_after_the_first_page
        gateway.retained += [envelope(number, ago=40 - number) for number in range(2, 7)]
        gateway.retained.append(new)
        await gateway.open[0].close()
        assert await take(client, 7) == [1, 2, 3, 4, 5, 6, 9]
        assert await everything(client) == []


@pytest.mark.parametrize("early", [[], [7]])
@asynchronous
async def test_a_new_client_resumes_from_when_it_connected(early: list[int]) -> None:
    async def post_before_the_pong(connection: ServerConnection, message: Message) -> bool:
        gateway.override = None
        for number in early:
            await gateway.post(envelope(number, ago=0.001))
        return False

    async with FakeGateway() as gateway:
        gateway.retained.append(envelope(1, ago=5))
        gateway.override = post_before_the_pong
        async with Client(gateway.url, TOKEN) as client:
            assert await take(client, len(early)) == early
            await gateway.open[0].close()
            gateway.retained.append(envelope(2))
            assert await take(client, 1) == [2]
            assert await everything(client) == []


@asynchronous
async def test_iteration_begins_at_the_position_of_an_earlier_client() -> None:
    async with FakeGateway() as gateway:
        gateway.retained = [envelope(number, ago=100 - 11 * number) for number in range(1, 9)]
        async with Client(gateway.url, TOKEN, position=gateway.retained[5]["id"]) as client:
            # Messages 4 and 5 lie in the 30 s that the server reads again.
            assert await take(client, 5) == [4, 5, 6, 7, 8]
            assert gateway.actions("resume")[0]["after"] == gateway.retained[5]["id"]


@asynchronous
async def test_an_invalid_position_ends_iteration_with_the_servers_error() -> None:
    async def refuse(connection: ServerConnection, message: Message) -> bool:
        if message["action"] == "resume":
            await gateway.error(connection, message, "invalid_message")
            return True
        return False

    async with FakeGateway() as gateway:
        gateway.override = refuse
        async with Client(gateway.url, TOKEN, position="no-uuid") as client:
            with pytest.raises(Refused, match="invalid_message"):
                await take(client, 1)
            with pytest.raises(Refused, match="invalid_message"):
                await client.ping()


@asynchronous
async def test_history_is_read_in_pages_and_does_not_change_iteration() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        gateway.retained = [envelope(number, ago=9) for number in range(5)]
        assert [message["payload"]["number"] for message in await client.resume()] == [0, 1, 2, 3, 4]
        assert await everything(client) == []


@asynchronous
async def test_a_send_whose_connection_is_lost_is_repeated_with_the_same_id() -> None:
    async def hang_up_once(connection: ServerConnection, message: Message) -> bool:
        if message["action"] != "alert":
            return False
        gateway.override = None
        await connection.close()
        return True

    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        gateway.override = hang_up_once
        reply = await client.alert({"all": True}, {})
        first, second = gateway.actions("alert")
        assert first == second
        assert reply["replyTo"] == first["id"]


@pytest.mark.parametrize("action", ["alert", "ping"])
@asynchronous
async def test_a_connection_the_server_does_not_know_is_replaced(action: str) -> None:
    async def forget(connection: ServerConnection, message: Message) -> bool:
        if message["action"] != action or len(gateway.handshakes) > 1:
            return False
        await gateway.error(connection, message, "unknown_connection")
        return True

    async with FakeGateway() as gateway, Client(gateway.url, TOKEN, heartbeat=0.05) as client:
        gateway.override = forget
        await client.send({"action": action})
        await gateway.until(lambda: len(gateway.handshakes) == 2 and len(gateway.open) == 1)


@asynchronous
async def test_a_connection_is_replaced_before_its_time_is_up_and_overlaps_the_old_one() -> None:
    async with FakeGateway() as gateway:
        gateway.life = timedelta(seconds=1.3)
        async with Client(gateway.url, TOKEN) as client:
            gateway.life = timedelta(hours=2)
            await gateway.until(lambda: len(gateway.open) == 2)
            await gateway.post(envelope(1))
            await gateway.until(lambda: len(gateway.open) == 1)
            assert gateway.events == ["opened", "opened", "closed"]
            await gateway.post(envelope(2))
            assert await everything(client) == [1, 2]


@asynchronous
async def test_a_connection_with_a_renewable_token_is_replaced_before_the_token_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def expire_soon(connection: ServerConnection, message: Message) -> bool:
        if message["action"] != "ping":
            return False
        now = datetime.now(UTC)
        pong = {
            "type": "pong",
            "replyTo": message["id"],
            "connectedAt": iso(now),
            "reconnectBy": iso(now + 9 * hour),
        }
        await connection.send(json.dumps(pong | {"expiresAt": iso(now + timedelta(seconds=0.2))}))
        return True

    hour = timedelta(hours=1)
    monkeypatch.setattr(inbox, "SHORTEST_LIFE_SECONDS", 0.05)
    async with FakeGateway() as gateway:
        gateway.override = expire_soon
        async with Client(gateway.url, TOKEN):
            async with Client(gateway.url, lambda: "renewed"):
                await gateway.until(lambda: gateway.handshakes.count("Bearer renewed") == 4)
            assert gateway.handshakes.count(f"Bearer {TOKEN}") == 1


@asynchronous
async def test_a_refusal_on_reconnecting_ends_iteration_and_sending() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        gateway.refusals = [401]
        await gateway.open[0].close()
        with pytest.raises(HandshakeRefused):
            await anext(client)
        with pytest.raises(HandshakeRefused):
            await client.ping()
        assert len(gateway.handshakes) == 2


@asynchronous
async def test_a_callable_is_asked_again_while_a_key_may_be_rotating() -> None:
    tokens = iter(["old", "refused", "refused again", "good"])
    async with (
        FakeGateway() as gateway,
        Client(gateway.url, lambda: next(tokens).replace(" ", "-")) as client,
    ):
        gateway.refusals = [401, 401]
        await gateway.open[0].close()
        await client.ping()
        assert gateway.handshakes[1:] == ["Bearer refused", "Bearer refused-again", "Bearer good"]


@asynchronous
async def test_a_401_after_the_longest_rotation_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ROTATION_SECONDS", 0.1)
    async with FakeGateway() as gateway, Client(gateway.url, lambda: TOKEN) as client:
        gateway.refusals = [401] * 100
        started = asyncio.get_running_loop().time()
        await gateway.open[0].close()
        with pytest.raises(HandshakeRefused, match="401"):
            await anext(client)
        assert asyncio.get_running_loop().time() - started >= 0.1
        assert len(gateway.handshakes) > 2


@asynchronous
async def test_a_403_is_final_also_for_a_callable() -> None:
    async with FakeGateway() as gateway, Client(gateway.url, lambda: TOKEN) as client:
        gateway.refusals = [403]
        await gateway.open[0].close()
        with pytest.raises(HandshakeRefused, match="403"):
            await anext(client)
        assert len(gateway.handshakes) == 2


def test_a_rotation_takes_as_long_as_functions_keep_a_key() -> None:
    assert client_module.ROTATION_SECONDS == KEY_LIFETIME_SECONDS


@pytest.mark.parametrize(
    "error", [ConnectionResetError(), TimeoutError(), socket.gaierror(), urllib.error.URLError("secret")]
)
@asynchronous
async def test_a_callable_that_cannot_reach_its_issuer_is_asked_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outcomes: list[Exception | str] = [TOKEN, error, error, "good"]

    def token() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async with FakeGateway() as gateway, Client(gateway.url, token) as client:
        await gateway.open[0].close()
        await client.ping()
        assert gateway.handshakes[-1] == "Bearer good"
    assert type(error).__name__ in caplog.text
    assert "secret" not in caplog.text


def test_a_pause_is_bounded_also_after_days_of_failures() -> None:
    assert all(0 <= inbox.backoff(failures) <= 30 for failures in (1, 11, 1100, 10**6))


@asynchronous
async def test_server_errors_are_retried_after_growing_random_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds: list[tuple[float, float]] = []

    def longest(low: float, high: float) -> float:
        bounds.append((low, high))
        return high

    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        monkeypatch.setattr(inbox, "BACKOFF_CAP_SECONDS", 0.05)
        monkeypatch.setattr("random.uniform", longest)
        gateway.refusals = [503, 429, 500]
        await gateway.open[0].close()
        await gateway.until(lambda: len(gateway.handshakes) == 5)
        await client.ping()
        pauses = [bound for bound in bounds if bound != inbox.ROLLOVER_WINDOW]
        assert pauses == [(0, 0.01), (0, 0.02), (0, 0.04), (0, 0.05)]
        bounds.clear()
        monkeypatch.setattr(client_module, "STABLE_SECONDS", 0)
        await gateway.open[0].close()
        await gateway.until(lambda: len(gateway.handshakes) == 6)
        assert bounds[0] == (0, 0.01)


@asynchronous
async def test_a_token_that_cannot_be_renewed_ends_iteration_with_the_reason() -> None:
    def tokens() -> Iterator[str]:
        yield TOKEN
        raise PermissionError("signed out")

    source = tokens()
    async with FakeGateway() as gateway, Client(gateway.url, lambda: next(source)) as client:
        await gateway.open[0].close()
        with pytest.raises(PermissionError, match="signed out"):
            await anext(client)


@asynchronous
async def test_frames_that_are_not_messages_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        for frame in (
            "not json",
            "[1]",
            '{"message": "Internal server error", "connectionId": "x="}',
            '{"type": "new"}',
        ):
            await gateway.open[0].send(frame)
        await gateway.post(envelope(1))
        assert await everything(client) == [1]
    assert "Internal server error" in caplog.text


@pytest.mark.parametrize(
    "frame",
    [
        '{"type": ["alert"], "replyTo": {}}',
        '{"type": "alert"}',
        '{"type": "alert", "id": ["x"]}',
        '{"replyTo": []}',
        "[" * 100_000,
        "1" * 5_000,
        b"\xff",
    ],
)
@asynchronous
async def test_a_frame_of_an_unexpected_form_keeps_the_connection(frame: str | bytes) -> None:
    async with FakeGateway() as gateway, Client(gateway.url, TOKEN) as client:
        await gateway.open[0].send(frame)
        await gateway.post(envelope(1))
        assert await everything(client) == [1]
        assert len(gateway.handshakes) == 1


@pytest.mark.parametrize("pong", [{}, {"connectedAt": "now"}, {"connectedAt": 1, "reconnectBy": None}])
@asynchronous
async def test_a_pong_of_another_form_is_an_error_that_says_so(pong: Message) -> None:
    async def answer(connection: ServerConnection, message: Message) -> bool:
        await connection.send(json.dumps(pong | {"replyTo": message["id"]}))
        return True

    async with FakeGateway() as gateway:
        gateway.override = answer
        with pytest.raises(ClientError, match="does not answer as Muster does"):
            await Client(gateway.url, TOKEN).__aenter__()


@asynchronous
async def test_closing_ends_iteration_after_what_has_arrived() -> None:
    async with FakeGateway() as gateway:
        async with Client(gateway.url, TOKEN) as client:
            await gateway.post(envelope(1), envelope(2))
            await client.ping()
        assert [message["payload"]["number"] async for message in client] == [1, 2]
        with pytest.raises(ClientClosed):
            await client.ping()
        with pytest.raises(RuntimeError, match="once"):
            await client.__aenter__()


@asynchronous
async def test_a_client_that_was_never_opened_says_so() -> None:
    with pytest.raises(ClientClosed):
        await Client("ws://127.0.0.1:1", TOKEN).ping()


@asynchronous
async def test_a_client_that_was_never_opened_yields_nothing() -> None:
    with pytest.raises(ClientClosed):
        await anext(Client("ws://127.0.0.1:1", TOKEN))


@asynchronous
async def test_after_a_renewal_into_another_role_its_messages_since_the_connection_opened_are_yielded() -> (
    None
):
    async with FakeGateway() as gateway:
        gateway.age = timedelta(minutes=30)
        async with Client(gateway.url, TOKEN, heartbeat=60) as client:
            await gateway.post(envelope(2))
            assert await take(client, 1) == [2]
            # Sent to the role that the user already had, but the connection had not.
            gateway.retained.insert(0, envelope(1, ago=600))
            gateway.role = "coordinator"
            await client.renew()
            message = await anext(client)
            assert (message["payload"]["number"], message["late"]) == (1, True)
            assert _time(gateway.actions("resume")[-1]["after"]) < _time(message["id"])
