"""Resuming over a WebSocket after real broadcasts."""

from muster import Broadcaster
from tests.support.deployment import Deployment, Json
from tests.support.fixtures import Open


def test_resume_returns_missed_messages_of_every_audience_in_order(
    deployment: Deployment, broadcaster: Broadcaster, open_socket: Open, shelter: str
) -> None:
    user = deployment.user("first_responder", shelter)
    away = open_socket(user)
    first = broadcaster.start("alert", {"users": [user.user_id]}, {"text": "seen"})
    seen = broadcaster.wait(first, 60).id
    assert [message["id"] for message in away.heard()] == [seen]
    away.close()

    scopes: list[Json] = [
        {"users": [user.user_id]},
        {"shelters": [shelter]},
        {"roles": ["first_responder"]},
        {"all": True},
    ]
    receipts = []
    for n, target in enumerate([*scopes, scopes[0]]):
        execution = broadcaster.start("broadcast", target, {"number": n, "text": "x" * 20_000})
        receipts.append(broadcaster.wait(execution, 60))

    # What came shortly before the place comes again.
    missed = [message for message in open_socket(user).resume(after=seen) if message["id"] > seen]
    assert [message["id"] for message in missed] == [receipt.id for receipt in receipts]
    assert [message["payload"]["number"] for message in missed] == list(range(5))


def test_resume_returns_no_messages_for_others(
    deployment: Deployment, broadcaster: Broadcaster, open_socket: Open, shelter: str
) -> None:
    other = deployment.user("admin", f"{shelter}-other")
    target = {"users": [other.user_id], "shelters": [f"{shelter}-other"], "roles": ["admin"]}
    receipt = broadcaster.wait(broadcaster.start("alert", target, {"text": "not for you"}), 60)

    resumed = open_socket(deployment.user("resident", shelter)).resume(after=receipt.id)

    assert receipt.id not in [message["id"] for message in resumed]
