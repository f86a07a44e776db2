"""Broadcasts through copies of the state machines with one broken part.

The deployed ones stay unchanged.
"""

from typing import Any

import pytest

from muster.local.seed import User
from tests.support import ROOT
from tests.support.deployment import VARIABLES, Deployment, users_of
from tests.support.fixtures import Connect
from tests.support.variants import Variants

FAULTY_DELIVER = ROOT / "tests" / "support" / "faulty_deliver.py"

BATCH: int = VARIABLES["batch_size"]

MISSING = "missing"

NO_PAUSE = {"$floor($random() * 4 * $states.input.attempt)": "0"}
"""Change of a broadcast machine that leaves out the pauses between a fan-out's attempts."""


@pytest.fixture(scope="session")
def machine(variants: Variants) -> str:
    """A broadcast machine whose Deliver does what the ids of its connections say."""
    faulty = variants.function("deliver", module=FAULTY_DELIVER)
    return variants.broadcast({variants.arn_of("deliver"): faulty})


@pytest.fixture(scope="session")
def impatient_machine(variants: Variants) -> str:
    """The same, with a timeout so short that outliving it three times takes seconds."""
    faulty = variants.function("deliver", module=FAULTY_DELIVER, timeout_seconds=2)
    return variants.broadcast({variants.arn_of("deliver"): faulty})


def _connect_one_each(
    deployment: Deployment, connect: Connect, shelter: str, *prefixes: str
) -> dict[str, User]:
    """Give the shelter a user with one connection for each prefix of a connection id; return the users."""
    users = {f"{prefix}/{n}": deployment.user("resident", shelter) for n, prefix in enumerate(prefixes)}
    for key, user in users.items():
        connect(user, prefix=f"{key.partition('/')[0]}-")
    return users


def _assert_one_batch_failed(deployment: Deployment, receipt: dict[str, Any], faulty: User) -> None:
    """Of two batches, only that of the faulty user's connection failed, and its users were notified."""
    assert receipt["audience"] == 2 * BATCH
    assert (receipt["delivered"], receipt["failed"], receipt["gone"]) == (BATCH, BATCH, 0)
    assert (receipt["offline"], receipt["offlineFailed"], receipt["unreached"]) == (BATCH, 0, [])
    handed_over = users_of(deployment.notifications(receipt["id"], "failed"))
    assert len(set(handed_over)) == len(handed_over) == BATCH
    assert faulty.user_id in handed_over


def test_deliver_that_raises_is_retried_and_then_fails_its_own_batch_only(
    deployment: Deployment, connect: Connect, shelter: str, machine: str
) -> None:
    users = _connect_one_each(deployment, connect, shelter, "crash", *["fine"] * (2 * BATCH - 1))

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=machine)

    _assert_one_batch_failed(deployment, receipt, users["crash/0"])


def test_deliver_that_raises_once_reaches_every_connection(
    deployment: Deployment, connect: Connect, shelter: str, machine: str
) -> None:
    _connect_one_each(deployment, connect, shelter, "crash-once", *["fine"] * (2 * BATCH - 1))

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=machine)

    assert (receipt["delivered"], receipt["failed"], receipt["offline"]) == (2 * BATCH, 0, 0)


def test_deliver_that_times_out_fails_its_own_batch_only(
    deployment: Deployment, connect: Connect, shelter: str, impatient_machine: str
) -> None:
    users = _connect_one_each(deployment, connect, shelter, "hang", *["fine"] * (2 * BATCH - 1))

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=impatient_machine)

    _assert_one_batch_failed(deployment, receipt, users["hang/0"])


def test_each_connection_has_its_own_outcome_whatever_api_gateway_answers_for_others(
    deployment: Deployment, connect: Connect, shelter: str, machine: str
) -> None:
    users = _connect_one_each(
        deployment, connect, shelter, "fine", "busy", "error", "too-large", "closed", "fine"
    )

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=machine)

    assert (receipt["delivered"], receipt["failed"], receipt["gone"]) == (3, 2, 1)
    # One for the busy connection, four for the one that always fails, and one for the closed: 413 is final.
    assert receipt["retries"] == 6
    failed = sorted(users[key].user_id for key in ("error/2", "too-large/3"))
    assert users_of(deployment.notifications(receipt["id"], "failed")) == failed
    assert users_of(deployment.notifications(receipt["id"], "gone")) == [users["closed/4"].user_id]
    assert receipt["offline"] == 3


def test_connections_endpoint_failing_for_a_whole_batch_leaves_the_others_alone(
    deployment: Deployment, connect: Connect, shelter: str, machine: str
) -> None:
    other = deployment.user()
    users = _connect_one_each(deployment, connect, shelter, *["error"] * BATCH)
    connect(other, prefix="fine-")

    receipt = deployment.broadcast({"shelters": [shelter], "users": [other.user_id]}, machine=machine)

    assert (receipt["delivered"], receipt["failed"]) == (1, BATCH)
    assert receipt["retries"] == 4 * BATCH
    expected = sorted(user.user_id for user in users.values())
    assert users_of(deployment.notifications(receipt["id"], "failed")) == expected


def test_user_whose_other_connection_got_the_message_is_not_notified(
    deployment: Deployment, connect: Connect, machine: str
) -> None:
    user = deployment.user()
    connect(user, prefix="too-large-")
    connect(user, prefix="fine-")

    receipt = deployment.broadcast({"users": [user.user_id]}, machine=machine)

    assert (receipt["delivered"], receipt["failed"], receipt["offline"]) == (1, 1, 0)
    assert deployment.notifications(receipt["id"]) == []


def test_partition_whose_fan_out_fails_is_published_and_named(
    deployment: Deployment, connect: Connect, shelter: str, variants: Variants
) -> None:
    user = deployment.user()
    connect(deployment.user("resident", shelter))
    begin = "$merge([$states.input, {'pages': 0"
    broken = f"$states.input.partition.scope = 'user' ? $number('{MISSING}') : {begin}"
    machine = variants.broadcast({begin: broken}, NO_PAUSE)
    target = {"shelters": [shelter], "users": [user.user_id]}
    counted = deployment.metric("PartitionsUnreached")

    receipt = deployment.broadcast(target, machine=machine)
    silent = deployment.broadcast(target, machine=machine, offline="never")

    partition = {"scope": "user", "value": user.user_id}
    assert receipt["unreached"] == silent["unreached"] == [partition]
    assert receipt["partitions"] == silent["partitions"] == 2
    assert (receipt["gone"], receipt["offline"]) == (1, 1)
    (notification,) = deployment.notifications(receipt["id"], "unreached")
    assert notification.body["partition"] == partition
    assert deployment.notifications(silent["id"]) == []
    assert deployment.metric("PartitionsUnreached") == counted + 2
    assert [item["messageId"] for item in deployment.queued(f"user#{user.user_id}")] == sorted(
        [receipt["id"], silent["id"]]
    )


def test_fan_out_that_cannot_even_be_started_is_published_and_named(
    deployment: Deployment, shelter: str, variants: Variants
) -> None:
    fanout = deployment.outputs.fanout_state_machine_arn
    machine = variants.machine(
        deployment.outputs.broadcast_state_machine_arn, {fanout: f"{fanout}-{MISSING}", **NO_PAUSE}
    )

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=machine)

    assert receipt["unreached"] == [{"scope": "shelter", "value": shelter}]
    (notification,) = deployment.notifications(receipt["id"], "unreached")
    assert notification.body["partition"] == receipt["unreached"][0]


def test_page_is_published_to_sns_when_offline_fails(
    deployment: Deployment, connect: Connect, shelter: str, variants: Variants
) -> None:
    users = [deployment.user("resident", shelter) for _ in range(2)]
    for user in users:
        connect(user)
    offline = variants.arn_of("offline")
    machine = variants.broadcast({offline: f"{offline}-{MISSING}"})

    receipt = deployment.broadcast({"shelters": [shelter]}, machine=machine)

    assert (receipt["gone"], receipt["offline"], receipt["offlineFailed"]) == (2, 2, 0)
    (notification,) = deployment.notifications(receipt["id"], "unreached")
    assert sorted(notification.body["userIds"]) == sorted(user.user_id for user in users)


def test_receipt_counts_the_users_who_could_not_be_notified(
    deployment: Deployment, connect: Connect, variants: Variants
) -> None:
    user = deployment.user()
    connect(user)
    offline, topic = variants.arn_of("offline"), deployment.outputs.offline_topic_arn
    machine = variants.broadcast({offline: f"{offline}-{MISSING}", topic: f"{topic}-{MISSING}"})
    counted = deployment.metric("OfflineFailed")

    receipt = deployment.broadcast({"users": [user.user_id]}, machine=machine)

    assert (receipt["gone"], receipt["offline"], receipt["offlineFailed"]) == (1, 0, 1)
    assert deployment.metric("OfflineFailed") == counted + 1
    assert len(deployment.queued(f"user#{user.user_id}")) == 1
