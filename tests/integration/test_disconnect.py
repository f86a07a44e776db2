"""`disconnect`, invoked as API Gateway would."""

import pytest

from tests.support.deployment import Deployment, unique
from tests.support.fixtures import Connect


def _event(connection_id: str, kind: str) -> dict[str, object]:
    return {"requestContext": {"connectionId": connection_id, "eventType": kind}, "body": "{}"}


def test_forgets_the_connection(deployment: Deployment, connect: Connect) -> None:
    connection_id = connect(deployment.user())

    answer = deployment.invoke("disconnect", _event(connection_id, "DISCONNECT"))

    assert answer.payload == {"statusCode": 200}
    assert deployment.connection(connection_id) is None


def test_takes_a_connection_that_is_forgotten_already(deployment: Deployment) -> None:
    answer = deployment.invoke("disconnect", _event(unique("connection"), "DISCONNECT"))
    assert answer.payload == {"statusCode": 200}


@pytest.mark.parametrize("kind", ["MESSAGE", "CONNECT"])
def test_forgets_nothing_on_any_other_event(deployment: Deployment, connect: Connect, kind: str) -> None:
    connection_id = connect(deployment.user())

    deployment.invoke("disconnect", _event(connection_id, kind))

    assert deployment.connection(connection_id) is not None
