"""Many clients at once: their handshakes, and the comparison of what they received with what was sent."""

import asyncio

import pytest

from muster.client import HandshakeRefused
from muster.listeners import Listener, Listeners, Timing, broadcast_limit_ms, compare
from muster.local.seed import User
from muster.progress import Silent


class RefusedListeners(Listeners):
    """Clients whose handshakes are refused, the first one's excepted."""

    def __init__(self, count: int) -> None:
        users = [User(f"user-{number}", "resident") for number in range(count)]
        super().__init__("ws://127.0.0.1:1", self.token, users, Silent())
        self.all_wait = asyncio.Event()

    @staticmethod
    def token(user_id: str) -> str:
        return user_id

    async def open(self, listener: Listener) -> None:
        if listener is self.all[0]:
            return
        if listener is self.all[-1]:
            self.all_wait.set()
        await self.all_wait.wait()
        raise HandshakeRefused(401)


def test_refused_handshakes_raise_one_error_whose_cause_names_all() -> None:
    async def connect() -> None:
        async with RefusedListeners(4):
            pytest.fail("connected")

    with pytest.raises(HandshakeRefused) as refused:
        asyncio.run(connect())
    assert isinstance(refused.value.__cause__, ExceptionGroup)
    assert len(refused.value.__cause__.exceptions) == 3


def test_clients_that_received_exactly_their_messages_give_no_problem() -> None:
    assert compare({"1": {"ann"}, "2": set()}, {"1": {"ann"}}, {}) == []


def test_a_problem_names_the_message_and_its_clients() -> None:
    expected = {"1": {"ann", "bob", "cem", "dan", "eva", "fay"}, "2": {"ann"}}
    problems = compare(
        expected, {"2": {"ann", "bob"}, "3": {"ann"}}, {"1": "alert to all", "2": "alert to ann"}
    )
    assert problems == [
        "alert to all: nothing arrived at ann, bob, cem, dan, eva and 1 more",
        "alert to ann: arrived at bob, who are not addressed",
        "a message that nobody sent (3): arrived at ann, who are not addressed",
    ]


def test_timing_is_by_nearest_rank_in_milliseconds() -> None:
    assert Timing.of([0.001 * n for n in range(100, 0, -1)]) == Timing(50.0, 99.0, 100.0)
    assert Timing.of([0.5]) == Timing(500.0, 500.0, 500.0)


def test_the_broadcast_limit_is_3_s_for_50_clients_and_grows_with_more() -> None:
    assert broadcast_limit_ms(10) == broadcast_limit_ms(50) == 3000
    assert 3000 < broadcast_limit_ms(300) < 10_000
