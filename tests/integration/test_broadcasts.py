"""Broadcast executions: what is rejected, recorded, counted, posted and published."""

import json
import time
from datetime import UTC, datetime
from functools import reduce
from os import urandom
from typing import Any

import pytest

from functions.shared.messages import uuid7
from muster.broadcaster import Broadcaster, Execution, InvalidBroadcast
from muster.local.seed import User
from tests.support.deployment import SHARDS, VARIABLES, Deployment, Json, pointers, refused, unique, users_of
from tests.support.fixtures import Connect
from tests.support.schemas import conforming

EVERYBODY = {"all": True}
NESTED: Json = reduce(lambda inner, _: {"a": inner}, range(40), Json())

FAULTY: list[tuple[str, Any, set[str]]] = [
    ("not-an-object", [], {""}),
    ("empty", {}, {"/type", "/target", "/payload"}),
    (
        "several-faults",
        {"type": "shout", "target": {"users": []}, "payload": [], "extra": 1},
        {"/type", "/target/users", "/payload", "/extra"},
    ),
    ("no-target", {"type": "alert", "target": {}, "payload": {}}, {"/target"}),
    (
        "all-and-more",
        {"type": "alert", "target": {"all": True, "roles": ["admin"]}, "payload": {}},
        {"/target/roles"},
    ),
    (
        "unknown-role",
        {"type": "alert", "target": {"roles": ["admin", "wizard"]}, "payload": {}},
        {"/target/roles/1"},
    ),
    (
        "update-about-no-shelter",
        {"type": "shelter_update", "target": EVERYBODY, "payload": {}},
        {"/shelterId"},
    ),
    (
        "alert-about-a-shelter",
        {"type": "alert", "target": EVERYBODY, "payload": {}, "shelterId": "north"},
        {"/shelterId"},
    ),
    (
        "two-senders",
        {"type": "alert", "target": EVERYBODY, "payload": {}, "sender": {"service": "s", "userId": "u"}},
        {"/sender/userId"},
    ),
    ("too-large", {"type": "alert", "target": EVERYBODY, "payload": {"text": "x" * 31_000}}, {"/payload"}),
    ("too-deep", {"type": "alert", "target": EVERYBODY, "payload": NESTED}, {"/payload" + "/a" * 32}),
    (
        "id-of-last-year",
        {
            "type": "alert",
            "target": EVERYBODY,
            "payload": {},
            "id": uuid7(time.time() - 31_536_000, bytes(10)),
        },
        {"/id"},
    ),
]


@pytest.mark.parametrize(("request_", "faulty"), [pytest.param(*case[1:], id=case[0]) for case in FAULTY])
def test_bad_input_fails_the_execution_with_every_fault(
    deployment: Deployment, request_: Any, faulty: set[str]
) -> None:
    outcome = deployment.outcome(deployment.start(request_))

    assert (outcome["status"], outcome["error"]) == ("FAILED", "InvalidBroadcast")
    cause = json.loads(outcome["cause"])
    assert pointers(cause) == faulty
    history = deployment.stepfunctions.get_execution_history(executionArn=outcome["executionArn"])
    assert [event["type"] for event in history["events"]].count("TaskScheduled") == 1  # Accept, once
    assert all(fault["problem"] and fault["fix"] for fault in cause["faults"])


def test_message_is_recorded_once_for_every_audience(deployment: Deployment, shelter: str) -> None:
    users, other = [unique("user"), unique("user")], unique("shelter")

    receipt = deployment.broadcast(
        {"shelters": [shelter, other], "users": users},
        type="shelter_update",
        shelterId=shelter,
        sender={"service": "registry"},
    )

    audiences = [f"shelter#{shelter}", f"shelter#{other}", *(f"user#{user}" for user in users)]
    items = [item for audience in audiences for item in deployment.queued(audience)]
    assert [item["messageId"] for item in items] == [receipt["id"]] * 4
    (envelope,) = {item["envelope"] for item in items}
    message = conforming("envelope", json.loads(envelope))
    assert message["shelterId"] == shelter
    assert message["sender"] == {"service": "registry"}
    assert message["sentAt"] == receipt["startedAt"]
    assert [int(item["ttl"]) - time.time() for item in items] == [pytest.approx(7 * 86400, abs=60)] * 4


def test_same_name_twice_is_one_broadcast(deployment: Deployment, shelter: str) -> None:
    request = {"type": "alert", "target": {"shelters": [shelter]}, "payload": {}}
    name = unique("broadcast")

    execution = deployment.start(request, name=name)
    deployment.receipt(execution)
    again = refused(
        deployment.stepfunctions.start_execution,
        stateMachineArn=deployment.outputs.broadcast_state_machine_arn,
        name=name,
        input=json.dumps(request),
    )

    assert again == "ExecutionAlreadyExists"
    assert len(deployment.queued(f"shelter#{shelter}")) == 1


def test_message_sent_again_keeps_its_first_record(deployment: Deployment, shelter: str) -> None:
    """The same message under another name, and to more people, is the same message."""
    identifier, other = uuid7(time.time(), urandom(10)), unique("shelter")

    first = deployment.broadcast({"shelters": [shelter]}, id=identifier)
    second = deployment.broadcast({"shelters": [shelter, other]}, id=identifier, offline="never")

    assert first["id"] == second["id"] == identifier
    (item,) = deployment.queued(f"shelter#{shelter}")
    assert json.loads(item["envelope"])["sentAt"] == first["startedAt"]
    assert [item["messageId"] for item in deployment.queued(f"shelter#{other}")] == [identifier]


@pytest.mark.parametrize("own", [True, False], ids=["own-id", "id-of-the-receipt"])
def test_id_of_another_message_is_a_conflict_and_records_nothing(
    deployment: Deployment, shelter: str, own: bool
) -> None:
    """Clients that have the first message would drop the second as a duplicate."""
    other = unique("shelter")
    first = deployment.broadcast(
        {"shelters": [shelter]}, **({"id": uuid7(time.time(), urandom(10))} if own else {})
    )
    request = {
        "type": "alert",
        "target": {"shelters": [shelter, other]},
        "payload": {"text": "Another"},
        "id": first["id"],
    }
    execution = deployment.start(request)
    outcome = deployment.outcome(execution)

    assert (outcome["status"], outcome["error"]) == ("FAILED", "Conflict")
    assert pointers(json.loads(outcome["cause"])) == {"/id"}
    assert "Another" not in outcome["cause"]
    assert len(deployment.queued(f"shelter#{shelter}")) == 1
    assert deployment.queued(f"shelter#{other}") == []
    broadcaster = Broadcaster(deployment.outputs.broadcast_state_machine_arn, deployment.stepfunctions)
    with pytest.raises(InvalidBroadcast) as conflict:
        broadcaster.wait(Execution(execution), timeout=10)
    assert (conflict.value.error, conflict.value.faults[0].pointer) == ("Conflict", "/id")


@pytest.mark.parametrize(("scope", "handed_over"), [("users", 1), ("shelters", 0)])
def test_audience_without_connections(
    deployment: Deployment, shelter: str, scope: str, handed_over: int
) -> None:
    """The message waits for a resume; SNS gets it only for users that the target names."""
    user = deployment.user("resident", shelter)
    name = user.user_id if scope == "users" else shelter

    receipt = deployment.broadcast({scope: [name]})

    assert (receipt["audience"], receipt["partitions"]) == (0, 1)
    assert receipt["offline"] == handed_over
    assert [item["messageId"] for item in deployment.queued(f"{scope[:-1]}#{name}")] == [receipt["id"]]
    notifications = deployment.notifications(receipt["id"])
    assert users_of(notifications) == [user.user_id] * handed_over
    assert {notification.body["reason"] for notification in notifications} <= {"absent"}


def test_expired_rows_are_neither_counted_nor_posted_to(
    deployment: Deployment, connect: Connect, shelter: str
) -> None:
    user = deployment.user("resident", shelter)
    connect(user, seconds=-1)

    receipts = [
        deployment.broadcast(target)
        for target in ({"shelters": [shelter]}, {"users": [user.user_id]}, {"roles": ["resident"]})
    ]

    assert [receipt["audience"] for receipt in receipts[:2]] == [0, 0]
    # A post would have found the connection gone.
    gone = [notice for receipt in receipts for notice in deployment.notifications(receipt["id"], "gone")]
    assert user.user_id not in users_of(gone)


def test_gone_connections_are_counted_and_deleted_and_their_users_notified(
    deployment: Deployment, connect: Connect, shelter: str
) -> None:
    gone, opening, elsewhere = (deployment.user("resident", shelter) for _ in range(3))
    closed = [connect(gone), connect(gone), connect(elsewhere)]
    in_handshake = connect(opening, connected_at=datetime.now(UTC))
    # A live connection of the third user that the target does not cover.
    connect(elsewhere, shelterId=None)

    receipt = deployment.broadcast({"shelters": [shelter]})

    assert (receipt["gone"], receipt["failed"], receipt["offline"]) == (3, 1, 2)
    assert [deployment.connection(connection_id) for connection_id in closed] == [None] * 3
    assert deployment.connection(in_handshake) is not None
    assert users_of(deployment.notifications(receipt["id"], "gone")) == [gone.user_id]
    assert users_of(deployment.notifications(receipt["id"], "failed")) == [opening.user_id]


@pytest.mark.parametrize("scope", ["shelter", "role", "all"])
def test_every_connection_beyond_a_page_and_a_batch_is_reached_once(
    deployment: Deployment, connect: Connect, shelter: str, scope: str
) -> None:
    users = [deployment.user("first_responder", shelter) for _ in range(20)]
    rows = [connect(user) for user in users]
    target = {"shelter": {"shelters": [shelter]}, "role": {"roles": ["first_responder"]}}.get(
        scope, EVERYBODY
    )

    receipt = deployment.broadcast(target)

    assert receipt["partitions"] == (1 if scope == "shelter" else SHARDS)
    assert receipt["audience"] >= 20
    assert receipt["pages"] >= 20 / VARIABLES["page_size"]
    # The deleted row and the notification both show that the connection was posted to.
    assert not any(deployment.connection(connection_id) for connection_id in rows)
    own = {user.user_id for user in users}
    handed_over = users_of(deployment.notifications(receipt["id"], "gone"))
    assert [user for user in handed_over if user in own] == sorted(own)


class TestOfflinePolicy:
    """What a sender may ask for: fallback, always or never."""

    @staticmethod
    def _broadcast(deployment: Deployment, connect: Connect, policy: str) -> tuple[User, dict[str, Any]]:
        user = deployment.user()
        connect(user)
        return user, deployment.broadcast({"users": [user.user_id]}, offline=policy)

    def test_never_publishes_nothing(self, deployment: Deployment, connect: Connect) -> None:
        user, receipt = self._broadcast(deployment, connect, "never")

        assert (receipt["gone"], receipt["offline"], receipt["notified"]) == (1, 0, False)
        assert deployment.notifications(receipt["id"]) == []
        assert len(deployment.queued(f"user#{user.user_id}")) == 1

    def test_fallback_publishes_the_users_who_were_not_reached(
        self, deployment: Deployment, connect: Connect
    ) -> None:
        user, receipt = self._broadcast(deployment, connect, "fallback")

        assert (receipt["gone"], receipt["offline"], receipt["notified"]) == (1, 1, False)
        (notification,) = deployment.notifications(receipt["id"])
        assert (notification.body["reason"], notification.body["userId"]) == ("gone", user.user_id)

    def test_always_also_publishes_the_message_for_the_whole_target(
        self, deployment: Deployment, connect: Connect
    ) -> None:
        user, receipt = self._broadcast(deployment, connect, "always")

        assert (receipt["gone"], receipt["offline"], receipt["notified"]) == (1, 1, True)
        (whole,) = deployment.notifications(receipt["id"], "always")
        assert whole.body["target"] == {"users": [user.user_id]}
        assert users_of(deployment.notifications(receipt["id"], "gone")) == [user.user_id]
