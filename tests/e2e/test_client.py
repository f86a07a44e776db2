"""The Python client and the broadcaster against the stack: what a service and an app do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from muster import Broadcaster, Client
from muster.broadcaster import IdempotencyConflict, InvalidBroadcast, Receipt
from muster.client import HandshakeRefused, Refused
from muster.types import ReceivedEnvelope
from tests.support.deployment import Deployment, Json, unique, users_of
from tests.support.fixtures import Open
from tests.support.waiting import until

SECONDS = 30
PAYLOAD = {"text": "Water at the north gate"}


def _run(scenario: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await scenario

    asyncio.run(limited())


async def _next(client: Client) -> ReceivedEnvelope:
    async with asyncio.timeout(SECONDS):
        return await anext(client)


class Gate:
    """Makes tokens. While it is shut, the client waits for one and stays disconnected."""

    def __init__(self, deployment: Deployment, user_id: str) -> None:
        self._deployment = deployment
        self._user_id = user_id
        self._open = asyncio.Event()
        self._open.set()

    async def token(self) -> str:
        await self._open.wait()
        return self._deployment.token(self._user_id)

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Close every connection of the user, and let none open inside the block."""
        self._open.clear()
        for connection_id in self._deployment.connections_of(self._user_id):
            self._deployment.gateway.delete_connection(ConnectionId=connection_id)
        await asyncio.to_thread(
            until, lambda: not self._deployment.connections_of(self._user_id), "the end of the connection"
        )
        yield
        self._open.set()


def _teller(broadcaster: Broadcaster) -> Callable[[str, Json], Awaitable[Receipt]]:
    async def tell(text: str, target: Json) -> Receipt:
        execution = await asyncio.to_thread(broadcaster.start, "alert", target, {"text": text})
        return await asyncio.to_thread(broadcaster.wait, execution, SECONDS)

    return tell


def test_client_receives_what_it_missed_while_disconnected_once_and_in_order(
    deployment: Deployment, broadcaster: Broadcaster, shelter: str
) -> None:
    user = deployment.user("resident", shelter)
    own = {"users": [user.user_id]}
    tell = _teller(broadcaster)

    async def scenario() -> None:
        gate = Gate(deployment, user.user_id)
        async with Client(deployment.outputs.websocket_url, gate.token) as client:
            await tell("before", own)
            assert (await _next(client))["payload"]["text"] == "before"
            async with gate.shut():
                missed = [await tell("one", own), await tell("two", {"shelters": [shelter]})]
                missed += [await tell("three", {"roles": ["resident"]}), await tell("four", own)]
            assert [receipt.delivered for receipt in missed] == [0] * 4
            assert [(await _next(client))["id"] for _ in missed] == [receipt.id for receipt in missed]
            after = await tell("after", own)
            assert (await _next(client))["id"] == after.id
            assert client.duplicates == 0

    _run(scenario())


def test_new_client_resumes_from_the_position_of_an_earlier_one(
    deployment: Deployment, broadcaster: Broadcaster
) -> None:
    user = deployment.user()
    tell = _teller(broadcaster)

    async def scenario() -> None:
        url, token = deployment.outputs.websocket_url, deployment.token(user.user_id)
        async with Client(url, token) as earlier:
            await tell("seen", {"users": [user.user_id]})
            assert (await _next(earlier))["payload"]["text"] == "seen"
        missed = await tell("missed", {"users": [user.user_id]})
        async with Client(url, token, position=earlier.position) as later:
            heard: list[str] = []
            # What came after the position, by itself, comes again.
            while missed.id not in heard:
                heard.append((await _next(later))["id"])
            assert heard[-1] == missed.id
            assert len(set(heard)) == len(heard)

    _run(scenario())


def test_offline_user_is_published_to_sns_and_gets_the_message_on_resume(
    deployment: Deployment, broadcaster: Broadcaster, open_socket: Open
) -> None:
    """The promise of Muster: an offline user misses no message."""
    user = deployment.user("first_responder")
    execution = broadcaster.start("alert", {"users": [user.user_id]}, PAYLOAD)
    receipt = broadcaster.wait(execution, SECONDS)

    assert (receipt.audience, receipt.offline) == (0, 1)
    (notification,) = deployment.notifications(receipt.id)
    assert users_of([notification]) == [user.user_id]
    assert notification.body["message"]["payload"] == PAYLOAD
    assert receipt.id in [message["id"] for message in open_socket(user).resume(after=receipt.id)]


def test_client_sends_and_a_refusal_says_why(deployment: Deployment, open_socket: Open, shelter: str) -> None:
    receiver = open_socket(deployment.user("resident", shelter))

    async def scenario() -> None:
        url = deployment.outputs.websocket_url
        token = deployment.token(deployment.user("first_responder").user_id)
        async with Client(url, token) as client:
            ack = await client.alert({"shelters": [shelter]}, PAYLOAD)
            assert (await asyncio.to_thread(receiver.next))["id"] == ack["id"]
            with pytest.raises(Refused) as refusal:
                await client.broadcast({"shelters": [shelter]}, PAYLOAD)
            assert refusal.value.code == "forbidden"
            assert [fault.pointer for fault in refusal.value.faults] == ["/action"]

    _run(scenario())


def test_an_invalid_token_refuses_the_handshake(deployment: Deployment) -> None:
    async def scenario() -> None:
        with pytest.raises(HandshakeRefused):
            async with Client(deployment.outputs.websocket_url, "garbage"):
                pass

    _run(scenario())


def test_same_name_is_one_broadcast_and_another_request_a_conflict(
    deployment: Deployment, broadcaster: Broadcaster, open_socket: Open
) -> None:
    socket = open_socket(deployment.user())
    target, name = {"users": [socket.user.user_id]}, unique("broadcast")

    first = broadcaster.start("alert", target, PAYLOAD, name=name)
    receipt = broadcaster.wait(first, SECONDS)
    again = broadcaster.start("alert", target, PAYLOAD, name=name)
    with pytest.raises(IdempotencyConflict):
        broadcaster.start("alert", target, {"text": "something else"}, name=name)

    assert (again.arn, again.already_started) == (first.arn, True)
    assert broadcaster.wait(again, SECONDS) == receipt
    assert [message["id"] for message in socket.heard()] == [receipt.id]


def test_refused_broadcast_raises_with_every_fault(broadcaster: Broadcaster) -> None:
    execution = broadcaster.start("alert", {"roles": ["wizard"], "users": ["a b"]}, PAYLOAD)

    with pytest.raises(InvalidBroadcast) as refusal:
        broadcaster.wait(execution, SECONDS)

    assert [fault.pointer for fault in refusal.value.faults] == ["/target/users/0"]
