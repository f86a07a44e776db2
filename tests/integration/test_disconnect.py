"""`disconnect`, invoked as API Gateway would."""

import pytest

from tests.support.deployment import Deployment, unique
from tests.support.fixtures import Connect


def _event(connection_id: str, kind: str) -> dict[str, object]:
    return {"requestContext": {"connectionId": connection_id, "eventType": kind}, "body": "{}"}


def test_deletes_the_row(deployment: Deployment, connect: Connect) -> None:
    connection_id = connect(deployment.user())

    answer = deployment.invoke("disconnect", _event(connection_id, "DISCONNECT"))

    assert answer.payload == {"statusCode": 200}
    assert deployment.connection(connection_id) is None


def test_accepts_a_connection_without_a_row(deployment: Deployment) -> None:
    answer = deployment.invoke("disconnect", _event(unique("connection"), "DISCONNECT"))
    assert answer.payload == {"statusCode": 200}


@pytest.mark.parametrize("kind", ["MESSAGE", "CONNECT"])
def test_deletes_nothing_on_any_other_event(deployment: Deployment, connect: Connect, kind: str) -> None:
    connection_id = connect(deployment.user())

    deployment.invoke("disconnect", _event(connection_id, kind))

    assert deployment.connection(connection_id) is not None
