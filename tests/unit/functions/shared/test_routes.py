import json

import pytest

from functions.shared.routes import misrouted
from tests.support.functions import event
from tests.support.schemas import conforming


@pytest.mark.parametrize("event_type", ["CONNECT", "DISCONNECT"])
def test_an_event_of_the_route_is_not_answered(event_type: str) -> None:
    assert misrouted(event(kind=event_type), event_type) is None


@pytest.mark.parametrize("event_type", ["CONNECT", "DISCONNECT"])
def test_a_message_whose_action_is_the_name_of_an_event_gets_an_error(event_type: str) -> None:
    response = misrouted(event({"action": f"${event_type.lower()}"}), event_type)
    assert response is not None
    assert response["statusCode"] == 400
    error = conforming("server-error", json.loads(response["body"]))
    assert (error["code"], error["faults"][0]["pointer"]) == ("unknown_action", "/action")
