"""Broadcasts through the deployed stack: Lambdas die, executions stop, clients disconnect and return.

Deliver posts through the fault proxy to the stack's own `@connections`. The deployed functions and machines
stay unchanged: the tests run copies of them. The proxy listens on
127.0.0.1, where the embedded stack's Lambdas run.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from os import urandom
from typing import Any

import pytest

from functions.shared.messages import uuid7
from functions.shared.posting.gateway import Outcome
from muster import Client
from muster.local.seed import User
from tests.support import ROOT
from tests.support.deployment import Deployment, Json, users_of
from tests.support.fixtures import Connect
from tests.support.gateways import outcome_of
from tests.support.proxy import (
    BROKEN,
    CUT,
    FORBIDDEN,
    GONE,
    RESET_AFTER,
    RESET_BEFORE,
    SILENT,
    TAKEN,
    THROTTLED,
    UNAVAILABLE,
    FaultProxy,
    Post,
    Script,
)
from tests.support.variants import Variants
from tests.support.waiting import until

MORTAL_DELIVER = ROOT / "tests" / "support" / "mortal_deliver.py"

TRANSIENT = [THROTTLED, BROKEN, UNAVAILABLE, RESET_BEFORE, RESET_AFTER, CUT]


@pytest.fixture(scope="module")
def running_relay(deployment: Deployment) -> Iterator[FaultProxy]:
    with FaultProxy(upstream=deployment.outputs.connections_endpoint) as proxy:
        yield proxy


@pytest.fixture
def relay(running_relay: FaultProxy) -> FaultProxy:
    """The proxy in front of the stack's `@connections`, which it simulates unless the script passes on."""
    running_relay.reset(Script(passes_on=False))
    return running_relay


@pytest.fixture(scope="module")
def machine(variants: Variants, running_relay: FaultProxy) -> str:
    """A broadcast machine whose Deliver posts through the proxy."""
    deliver = variants.function("deliver", environment={"CONNECTIONS_ENDPOINT": running_relay.endpoint})
    return variants.broadcast({variants.arn_of("deliver"): deliver})


@pytest.fixture(scope="module")
def mortal_machine(variants: Variants, running_relay: FaultProxy) -> str:
    """The same, with a Deliver whose process dies for some connection ids."""
    deliver = variants.function(
        "deliver", module=MORTAL_DELIVER, environment={"CONNECTIONS_ENDPOINT": running_relay.endpoint}
    )
    return variants.broadcast({variants.arn_of("deliver"): deliver})


def _outcomes(receipt: Json) -> tuple[int, int, int]:
    return receipt["delivered"], receipt["gone"], receipt["failed"]


def _queued(deployment: Deployment, shelter: str) -> list[str]:
    return [item["messageId"] for item in deployment.queued(f"shelter#{shelter}")]


def test_receipt_sns_and_queue_agree_whatever_the_connections_answer(
    deployment: Deployment, connect: Connect, shelter: str, relay: FaultProxy, machine: str
) -> None:
    acts = {
        "fine": [TAKEN],
        "busy": [THROTTLED, THROTTLED, TAKEN],
        "reset": [RESET_AFTER, TAKEN],
        "cut": [CUT, UNAVAILABLE, TAKEN],
        "slow": [SILENT, TAKEN],
        "gone": [GONE],
        "refused": [FORBIDDEN],
        "full": [THROTTLED],
    }
    users = {name: deployment.user("resident", shelter) for name in acts}
    connections = {name: connect(user) for name, user in users.items()}
    second = connect(users["gone"])
    relay.reset(Script({connections[name]: fate for name, fate in acts.items()}, passes_on=False))

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=machine)

    assert _outcomes(receipt) == (6, 1, 2)
    assert (receipt["offline"], receipt["offlineFailed"], receipt["unreached"]) == (2, 0, [])
    # A user whose other connection got the message is not notified.
    missed = sorted(users[name].user_id for name in ("refused", "full"))
    assert users_of(deployment.notifications(receipt["id"])) == missed
    assert relay.taken[second] == 1
    assert _queued(deployment, shelter) == [receipt["id"]]
    assert deployment.connection(connections["gone"]) is None
    assert all(deployment.connection(connections[name]) for name in acts if name != "gone")


def test_deliver_killed_in_the_middle_of_a_batch_is_retried_and_reaches_every_connection(
    deployment: Deployment, connect: Connect, shelter: str, relay: FaultProxy, mortal_machine: str
) -> None:
    dying = connect(deployment.user("resident", shelter), prefix="killed-once-")
    others = [connect(deployment.user("resident", shelter)) for _ in range(2)]
    # The batch is under way when the runtime ends: two have the message, one has not answered.
    relay.reset(Script({dying: [SILENT, TAKEN]}, passes_on=False))

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=mortal_machine)

    assert (_outcomes(receipt), receipt["offline"]) == ((3, 0, 0), 0)
    assert relay.taken[dying] >= 1
    assert all(relay.taken[name] >= 2 for name in others)
    assert {json.loads(post.body)["id"] for post in relay.posts} == {receipt["id"]}


@pytest.mark.parametrize("fate", ["killed", "out-of-memory"])
def test_deliver_that_always_dies_fails_its_own_batch_only(
    deployment: Deployment, connect: Connect, shelter: str, relay: FaultProxy, mortal_machine: str, fate: str
) -> None:
    users = [deployment.user("resident", shelter) for _ in range(6)]
    connect(users[0], prefix=f"{fate}-")
    for user in users[1:]:
        connect(user)
    # Nobody in the dying batch answers in time.
    silent = {post: [SILENT] for post in deployment.connections_of(users[0].user_id)}
    relay.reset(Script(silent, passes_on=False))

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=mortal_machine)

    assert (_outcomes(receipt), receipt["offline"], receipt["unreached"]) == ((3, 0, 3), 3, [])
    told = users_of(deployment.notifications(receipt["id"], "failed"))
    assert len(set(told)) == len(told) == 3
    assert users[0].user_id in told
    assert _queued(deployment, shelter) == [receipt["id"]]


def test_deliver_whose_time_runs_out_reports_what_is_left(
    deployment: Deployment, connect: Connect, shelter: str, relay: FaultProxy, variants: Variants
) -> None:
    deliver = variants.function(
        "deliver", environment={"CONNECTIONS_ENDPOINT": relay.endpoint}, timeout_seconds=4
    )
    machine = variants.broadcast({variants.arn_of("deliver"): deliver})
    users = [deployment.user("resident", shelter) for _ in range(3)]
    connections = [connect(user) for user in users]
    relay.reset(Script({connections[0]: [SILENT]}, passes_on=False))

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=machine)

    assert (_outcomes(receipt), receipt["retries"], receipt["offline"]) == ((2, 0, 1), 0, 1)
    assert users_of(deployment.notifications(receipt["id"], "failed")) == [users[0].user_id]
    # It was not invoked again.
    assert [relay.taken[name] for name in connections] == [0, 1, 1]


# ---- stopped by an operator


class Stopped:
    """A broadcast to a shelter that is stopped while one of two connections has yet to answer."""

    def __init__(self, deployment: Deployment, connect: Connect, shelter: str, relay: FaultProxy) -> None:
        self.deployment, self.shelter, self.relay = deployment, shelter, relay
        self.users = [deployment.user("resident", shelter) for _ in range(2)]
        self.reached, self.waiting = (connect(user) for user in self.users)
        # Messages that other tests sent to all are retained too.
        self.earlier = set(self._retained())

    def run(self, machine: str, **request: Any) -> str:
        """Start and stop it; return the execution."""
        self.relay.reset(Script({self.waiting: [SILENT, SILENT, TAKEN]}, passes_on=False))
        document = {"type": "alert", "target": {"shelters": [self.shelter]}, "payload": {}, **request}
        execution = self.deployment.start(document, machine=machine)
        until(lambda: self.relay.taken[self.reached], "the first connection has it", 20)
        self.deployment.stepfunctions.stop_execution(executionArn=execution, error="Operator", cause="a test")
        assert self.deployment.outcome(execution)["status"] == "ABORTED"
        return execution

    def resumed(self) -> list[str]:
        """What the one who has not got it gets on resume."""
        return [identifier for identifier in self._retained() if identifier not in self.earlier]

    def _retained(self) -> Iterator[str]:
        request = {"action": "resume"}
        while request:
            answer = self.deployment.default(self.waiting, request)
            yield from (message["id"] for message in answer["messages"])
            request = {"action": "resume", "cursor": answer["cursor"]} if answer["more"] else {}

    def ids_taken(self, connection_id: str) -> list[str]:
        """The ids of the messages that a connection was given, in order."""
        posts = self.relay.posts_to(connection_id)
        return [json.loads(post.body)["id"] for post in posts if post.act.taken]


@pytest.fixture
def stopped(deployment: Deployment, connect: Connect, shelter: str, relay: FaultProxy) -> Stopped:
    return Stopped(deployment, connect, shelter, relay)


def test_stopped_broadcast_stays_in_the_queue_and_a_new_one_is_another_message(
    deployment: Deployment, shelter: str, stopped: Stopped, machine: str
) -> None:
    stopped.run(machine)
    (first,) = _queued(deployment, shelter)
    assert stopped.resumed() == [first]
    stopped.relay.reset(Script(passes_on=False))

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=machine)

    assert (_outcomes(receipt), receipt["id"] == first) == ((2, 0, 0), False)
    assert stopped.resumed() == [first, receipt["id"]]


def test_stopped_broadcast_with_an_id_of_its_own_is_the_same_message_when_started_again(
    deployment: Deployment, shelter: str, stopped: Stopped, machine: str
) -> None:
    """Within the 30 s by which an id may differ from the broadcast's start."""
    identifier = uuid7(time.time(), urandom(10))
    stopped.run(machine, id=identifier)
    stopped.relay.reset(Script(passes_on=False))

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=machine, id=identifier, payload={})

    assert (receipt["id"], _outcomes(receipt)) == (identifier, (2, 0, 0))
    assert stopped.ids_taken(stopped.waiting)[-1] == stopped.ids_taken(stopped.reached)[-1] == identifier
    assert _queued(deployment, shelter) == stopped.resumed() == [identifier]


def test_stopped_broadcast_continues_like_a_redrive(
    deployment: Deployment, shelter: str, stopped: Stopped, machine: str, variants: Variants
) -> None:
    """The emulator has no RedriveExecution: Accept's answer is given to a machine that begins with Record."""
    execution = stopped.run(machine)
    history = deployment.stepfunctions.get_execution_history(executionArn=execution, maxResults=100)
    accepted = next(
        json.loads(event["stateExitedEventDetails"]["output"])
        for event in history["events"]
        if event.get("stateExitedEventDetails", {}).get("name") == "Accept"
    )
    redriven = variants.machine(machine, {'"StartAt":"Accept"': '"StartAt":"Record"'})
    stopped.relay.reset(Script(passes_on=False))

    receipt = deployment.receipt(deployment.start(accepted, machine=redriven))

    # The same message: who has it already drops it.
    assert receipt["id"] == accepted["messageId"]
    assert (_outcomes(receipt), receipt["offline"]) == ((2, 0, 0), 0)
    assert (
        set(stopped.ids_taken(stopped.reached)) == set(stopped.ids_taken(stopped.waiting)) == {receipt["id"]}
    )
    assert _queued(deployment, shelter) == [receipt["id"]]


# ---- clients that come and go

USERS, STEADFAST, OPERATIONS, MESSAGES = 200, 20, 400, 6


class Wanderer:
    """A user whose client comes and goes, and what it has got so far."""

    def __init__(self, deployment: Deployment, user: User) -> None:
        self.user = user
        self.got: list[str] = []
        self.duplicates = 0
        self.position: str | None = None
        self.client: Client | None = None
        self._url = deployment.outputs.websocket_url
        self._token = deployment.token(user.user_id)
        self._listener: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        self.client = Client(self._url, self._token, position=self.position, heartbeat=30)
        await self.client.__aenter__()
        self._listener = asyncio.create_task(self._listen(self.client))

    async def leave(self) -> None:
        if self.client and self._listener:
            client, self.client = self.client, None
            await client.close()
            await self._listener
            self.duplicates += client.duplicates
            self.position = client.position

    def lose(self) -> None:
        """Lose the connection without a word; the client notices and comes back by itself."""
        if self.client and self.client._link:
            self.client._link._socket.transport.abort()

    async def _listen(self, client: Client) -> None:
        async for message in client:
            self.got.append(message["id"])


async def _wander(people: list[Wanderer], rng: random.Random) -> None:
    """Do OPERATIONS at random, a few at a time, but one at a time for each."""
    locks = {person.user.user_id: asyncio.Lock() for person in people}
    limit = asyncio.Semaphore(4)

    async def one(person: Wanderer, loses: bool) -> None:
        async with limit, locks[person.user.user_id]:
            if person.client is None:
                await person.connect()
            elif loses:
                person.lose()
            else:
                await person.leave()

    await asyncio.gather(*(one(rng.choice(people), rng.random() < 0.4) for _ in range(OPERATIONS)))


def _answered(relay: FaultProxy, message_id: str) -> tuple[int, int, int]:
    """How many connections were delivered, gone and failed, by the answers to each."""
    posts: dict[str, list[Post]] = {}
    for post in relay.posts:
        if json.loads(post.body)["id"] == message_id:
            posts.setdefault(post.connection_id, []).append(post)
    outcomes: Counter[Outcome] = Counter(map(outcome_of, posts.values()))
    return outcomes["delivered"], outcomes["gone"], outcomes["failed"]


def test_broadcasts_to_clients_that_come_and_go_reach_each_once_or_on_resume(
    deployment: Deployment, shelter: str, relay: FaultProxy, machine: str, rng: random.Random
) -> None:
    people = [Wanderer(deployment, deployment.user("resident", shelter)) for _ in range(USERS)]
    steadfast, wanderers = people[:STEADFAST], people[STEADFAST:]
    receipts: list[Json] = []

    def speak(ended: Callable[[], bool]) -> None:
        while len(receipts) < MESSAGES or not ended():
            receipts.append(deployment.broadcast({"shelters": [shelter]}, machine=machine))

    async def scene() -> None:
        await asyncio.gather(*(person.connect() for person in steadfast))
        # One gets its first message twice for sure.
        (twice,) = deployment.connections_of(steadfast[0].user.user_id)
        fates = {twice: [RESET_AFTER, TAKEN]}
        relay.reset(Script(fates, chance=0.03, seed=rng.getrandbits(32), faults=TRANSIENT))
        wandering = asyncio.create_task(_wander(wanderers, rng))
        await asyncio.to_thread(speak, wandering.done)
        await wandering
        sent = {receipt["id"] for receipt in receipts}
        async with asyncio.timeout(20):
            while any(set(person.got) != sent for person in steadfast):
                await asyncio.sleep(0.05)
        limit = asyncio.Semaphore(4)

        async def come_back(person: Wanderer) -> None:
            async with limit:
                await person.leave()
                await person.connect()
                assert person.client
                resumed = [message["id"] for message in await person.client.resume()]
                assert len(set(resumed)) == len(resumed)
                assert sent - set(person.got) <= set(resumed)

        await asyncio.gather(*(come_back(person) for person in wanderers))
        await asyncio.gather(*(person.leave() for person in people))

    asyncio.run(scene())

    for receipt in receipts:
        assert receipt["delivered"] >= STEADFAST
        # One that left right after it came is posted to until the attempts end, perhaps in a fault. Its age,
        # which decides whether a 410 proves that it is closed, is not known to the relay.
        delivered, gone, failed = _answered(relay, receipt["id"])
        assert (receipt["delivered"], receipt["gone"] + receipt["failed"]) == (delivered, gone + failed)
        assert (receipt["unreached"], receipt["offlineFailed"]) == ([], 0)
    once = Counter(receipt["id"] for receipt in receipts)
    assert all(Counter(person.got) == once for person in steadfast)
    assert steadfast[0].duplicates >= 1
    assert _queued(deployment, shelter) == sorted(once)
