"""Malformed frames: each gets an error, and the connection stays usable."""

import json
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from tests.support.deployment import Deployment, pointers
from tests.support.fixtures import Open

ALERT: dict[str, Any] = {"action": "alert", "target": {"all": True}, "payload": {}}


def _without(field: str) -> dict[str, Any]:
    return {name: value for name, value in ALERT.items() if name != field}


def _nested(levels: int) -> str:
    return json.dumps(ALERT).replace("{}", '{"a":' * levels + "1" + "}" * levels)


FRAMES: list[tuple[str, str | dict[str, Any], str, set[str]]] = [
    ("not-json", "hello", "invalid_json", {""}),
    ("empty", "", "invalid_json", {""}),
    ("half-an-object", '{"action": "ping"', "invalid_json", {""}),
    ("not-an-object", "[1, 2]", "invalid_json", {""}),
    ("not-a-number", '{"action": "ping", "id": NaN}', "invalid_json", {""}),
    ("a-name-twice", '{"action": "ping", "action": "alert"}', "invalid_json", {""}),
    (
        "5000-digits",
        json.dumps(ALERT).replace("{}", '{"n": ' + "1" * 5000 + "}"),
        "invalid_message",
        {"/payload/n"},
    ),
    (
        "thousands-of-users",
        {**ALERT, "target": {"users": ["a", *range(5_000)]}},
        "invalid_message",
        {"/target/users"},
    ),
    (
        "id-over-128-bytes",
        {**ALERT, "target": {"users": ["世" * 43]}},
        "invalid_message",
        {"/target/users/0"},
    ),
    ("no-action", {}, "unknown_action", {"/action"}),
    ("unknown-action", {"action": "fly"}, "unknown_action", {"/action"}),
    ("action-of-another-type", {"action": ["ping"]}, "unknown_action", {"/action"}),
    ("no-payload", _without("payload"), "invalid_message", {"/payload"}),
    ("no-target", _without("target"), "invalid_message", {"/target"}),
    ("extra-field", {**ALERT, "priority": 1}, "invalid_message", {"/priority"}),
    ("sender-of-ones-own", {**ALERT, "sender": {"service": "root"}}, "invalid_message", {"/sender"}),
    (
        "wrong-types",
        {**ALERT, "target": {"roles": "admin"}, "payload": [1]},
        "invalid_message",
        {"/payload", "/target/roles"},
    ),
    ("unknown-role", {**ALERT, "target": {"roles": ["wizard"]}}, "invalid_message", {"/target/roles/0"}),
    ("nobody", {**ALERT, "target": {}}, "invalid_message", {"/target"}),
    ("bad-id", {"action": "ping", "id": "with space"}, "invalid_message", {"/id"}),
    ("update-about-nothing", {"action": "shelter_update", "payload": {}}, "invalid_message", {"/shelterId"}),
    (
        "resume-from-two-places",
        {"action": "resume", "after": "019ad2f4-6c1d-7a3b-9f10-2b7c5d8e4a61", "cursor": "x"},
        "invalid_message",
        {"/after"},
    ),
    ("resume-from-nowhere", {"action": "resume", "after": "yesterday"}, "invalid_message", {"/after"}),
    ("larger-than-an-envelope", {**ALERT, "payload": {"text": "x" * 31_000}}, "too_large", {"/payload"}),
    ("40-levels-deep", _nested(40), "invalid_message", {"/payload" + "/a" * 32}),
    ("5000-levels-deep", _nested(5000), "invalid_json", {""}),
]


@pytest.mark.parametrize(
    ("frame", "code", "faulty"), [pytest.param(*case[1:], id=case[0]) for case in FRAMES]
)
def test_malformed_frame_gets_an_error_that_names_the_place(
    deployment: Deployment,
    open_socket: Open,
    frame: str | dict[str, Any],
    code: str,
    faulty: set[str],
) -> None:
    socket = open_socket(deployment.user("admin"))

    # As text: no id is added, so the error must do without.
    error = socket.ask(frame if isinstance(frame, str) else json.dumps(frame))

    assert (error["type"], error["code"], error["replyTo"]) == ("error", code, None)
    assert pointers(error) == faulty
    assert all(fault["problem"] and fault["fix"] for fault in error["faults"])
    assert socket.heard() == []


def test_error_names_the_message_that_it_answers(deployment: Deployment, open_socket: Open) -> None:
    socket = open_socket(deployment.user("admin"))

    error = socket.ask({"action": "alert", "id": "mine-1"})

    assert error["replyTo"] == "mine-1"
    assert pointers(error) == {"/target", "/payload"}


@pytest.mark.parametrize("size", [33_000, 200_000])
def test_larger_frame_than_api_gateway_takes_closes_the_connection(
    deployment: Deployment, open_socket: Open, size: int
) -> None:
    socket = open_socket(deployment.user("admin"))

    with pytest.raises(ConnectionClosed) as closed:
        socket.ask({**ALERT, "payload": {"text": "x" * size}})

    assert closed.value.rcvd
    assert closed.value.rcvd.code == CloseCode.MESSAGE_TOO_BIG


def test_frame_that_names_the_default_route_is_refused(deployment: Deployment, open_socket: Open) -> None:
    socket = open_socket(deployment.user())

    assert socket.ask(json.dumps({"action": "$default"}))["code"] == "unknown_action"


@pytest.mark.parametrize("route", ["$connect", "$disconnect"])
def test_frame_that_names_another_route_changes_nothing(
    deployment: Deployment, open_socket: Open, route: str
) -> None:
    socket = open_socket(deployment.user())
    before = deployment.connection(socket.connection_id)

    # The emulator calls that route, which has no route response; AWS documents nothing.
    socket.connection.send(json.dumps({"action": route}))

    assert socket.heard() == []
    after = deployment.connection(socket.connection_id)
    assert after is not None
    assert before is not None
    assert after | {"lastSeenAt": None} == before | {"lastSeenAt": None}
