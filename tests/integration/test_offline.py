"""`offline`, invoked with those whom a page did not reach."""

import json
import time
from dataclasses import dataclass
from os import urandom
from typing import Any

import pytest

from functions.shared.messages import uuid7
from muster.local.seed import User
from tests.support.deployment import Deployment, users_of
from tests.support.fixtures import Connect
from tests.support.schemas import conforming


@dataclass(frozen=True)
class Message:
    """A message that some did not get."""

    deployment: Deployment
    message_id: str

    def hand_over(self, undelivered: list[dict[str, str]], claim: str = "one") -> dict[str, int]:
        """Invoke `offline` and return its counts."""
        envelope = {
            "type": "alert",
            "id": self.message_id,
            "sentAt": "2026-11-23T08:15:30.125Z",
            "sender": {"service": "test"},
            "payload": {"text": "Überflutung 🌊"},
        }
        batch: dict[str, Any] = {
            "messageId": self.message_id,
            "type": "alert",
            "envelope": json.dumps(conforming("envelope", envelope)),
            "claim": claim,
            "undelivered": undelivered,
        }
        answer = self.deployment.invoke("offline", conforming("offline-batch", batch))
        return dict(conforming("offline-result", answer.payload))

    def users(self) -> list[str]:
        """Return the users that the offline topic has messages about."""
        return users_of(self.deployment.notifications(self.message_id))


@pytest.fixture
def message(deployment: Deployment) -> Message:
    return Message(deployment, uuid7(time.time(), urandom(10)))


def _gone(user: User, connection_id: str) -> dict[str, str]:
    return {"userId": user.user_id, "reason": "gone", "connectionId": connection_id}


def test_notification_carries_the_message_and_what_subscribers_filter_on(
    deployment: Deployment, message: Message, shelter: str
) -> None:
    user = deployment.user("first_responder", shelter)

    counts = message.hand_over([_gone(user, "closed=")])

    assert counts == {"offline": 1, "offlineFailed": 0}
    (notification,) = deployment.notifications(message.message_id)
    assert notification.body["userId"] == user.user_id
    assert notification.body["reason"] == "gone"
    assert notification.body["message"]["payload"] == {"text": "Überflutung 🌊"}
    assert notification.attributes == {
        "type": "alert",
        "reason": "gone",
        "userId": user.user_id,
        "role": "first_responder",
        "shelterId": shelter,
    }


def test_row_of_a_gone_connection_is_deleted_and_of_a_failed_one_kept(
    deployment: Deployment, connect: Connect, message: Message
) -> None:
    first, second = deployment.user(), deployment.user()
    gone, failed = connect(first), connect(second)

    counts = message.hand_over([_gone(first, gone), _gone(second, failed) | {"reason": "failed"}])

    assert counts == {"offline": 2, "offlineFailed": 0}
    assert deployment.connection(gone) is None
    assert deployment.connection(failed) is not None


def test_user_with_another_live_connection_is_left_out(
    deployment: Deployment, connect: Connect, message: Message
) -> None:
    reached, expired = deployment.user(), deployment.user()
    connect(reached)
    connect(expired, seconds=-1)

    counts = message.hand_over([_gone(reached, "closed-1="), _gone(expired, "closed-2=")])

    assert counts == {"offline": 1, "offlineFailed": 0}
    assert message.users() == [expired.user_id]


def test_user_whose_connections_fail_in_different_batches_is_notified_once(
    deployment: Deployment, connect: Connect, message: Message
) -> None:
    user = deployment.user()
    first, second = connect(user), connect(user)

    before = message.hand_over([_gone(user, first)], claim="one")
    after = message.hand_over([_gone(user, second)], claim="two")

    assert (before["offline"], after["offline"]) == (0, 1)
    assert message.users() == [user.user_id]


def test_only_the_claim_that_took_a_user_notifies_them_again(
    deployment: Deployment, message: Message
) -> None:
    user = deployment.user()
    absent = [{"userId": user.user_id, "reason": "absent"}]

    counts = [message.hand_over(absent, claim)["offline"] for claim in ("one", "two", "one")]

    assert counts == [1, 0, 1]
    assert message.users() == [user.user_id] * 2


def test_more_users_than_one_publish_batch_are_each_notified_once(
    deployment: Deployment, message: Message
) -> None:
    users = [deployment.user() for _ in range(23)]

    counts = message.hand_over([_gone(user, f"closed-{n}=") for n, user in enumerate(users)])

    assert counts == {"offline": 23, "offlineFailed": 0}
    assert message.users() == sorted(user.user_id for user in users)


def test_empty_batch_notifies_no_user(message: Message) -> None:
    assert message.hand_over([]) == {"offline": 0, "offlineFailed": 0}
