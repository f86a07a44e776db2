"""`deliver`, invoked with batches whose connections are gone."""

import json
from datetime import UTC, datetime
from typing import Any

from muster.local.seed import User
from tests.support.deployment import Deployment, users_of
from tests.support.fixtures import Connect
from tests.support.schemas import conforming

ENVELOPE = {
    "type": "alert",
    "id": "019ad2f4-6c1d-7a3b-9f10-2b7c5d8e4a61",
    "sentAt": "2026-11-23T08:15:30.125Z",
    "sender": {"service": "test"},
    "payload": {},
}


def _batch(deployment: Deployment, connections: dict[str, User]) -> dict[str, Any]:
    rows = [
        {"connectionId": connection_id, "userId": user.user_id, "connectedAt": row["connectedAt"]}
        for connection_id, user in connections.items()
        if (row := deployment.connection(connection_id))
    ]
    batch = {
        "messageId": ENVELOPE["id"],
        "type": ENVELOPE["type"],
        "envelope": json.dumps(ENVELOPE),
        "connections": rows,
    }
    return dict(conforming("delivery-batch", batch))


def test_gone_connections_are_reported_and_their_rows_kept(deployment: Deployment, connect: Connect) -> None:
    users = [deployment.user(), deployment.user()]
    connections = {connect(user): user for user in users}

    result = deployment.invoke("deliver", _batch(deployment, connections)).payload

    assert conforming("delivery-result", result) == {
        "delivered": 0,
        "gone": 2,
        "failed": 0,
        "retries": 2,  # each was asked again
        "undelivered": [
            {"connectionId": connection_id, "userId": user.user_id, "reason": "gone"}
            for connection_id, user in connections.items()
        ],
    }
    assert all(deployment.connection(connection_id) for connection_id in connections)


def test_a_connection_in_its_handshake_is_tried_again_and_keeps_its_row(
    deployment: Deployment, connect: Connect
) -> None:
    user = deployment.user()
    opening = connect(user, connected_at=datetime.now(UTC))

    result = deployment.invoke("deliver", _batch(deployment, {opening: user})).payload

    assert (result["gone"], result["failed"]) == (0, 1)
    assert result["retries"] > 0
    assert deployment.connection(opening) is not None


def test_a_row_that_cannot_be_read_fails_alone(
    deployment: Deployment, connect: Connect, shelter: str
) -> None:
    """Through the real query: one row has no time, another a number for one, a third no user."""
    users = [deployment.user("resident", shelter) for _ in range(4)]
    changes: list[dict[str, Any]] = [{}, {"connectedAt": None}, {"connectedAt": 1795421402}, {"userId": None}]
    rows = [connect(user, **change) for user, change in zip(users, changes, strict=True)]

    receipt = deployment.broadcast({"shelters": [shelter]})

    assert (receipt["gone"], receipt["failed"], receipt["unreached"]) == (1, 3, [])
    assert (receipt["offline"], receipt["offlineFailed"]) == (3, 0)
    told = users_of(deployment.notifications(receipt["id"]))
    assert told == sorted(user.user_id for user in users[:3])
    assert [deployment.connection(row) is None for row in rows] == [True, False, False, False]
