import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.shared.errors import Fault, InvalidJson, InvalidMessage, reply
from functions.shared.validation import MAX_DEPTH, MAX_FAULTS, parse_object, validate

from .support import answered, properties

ID = "0190a6b2-7f00-7000-8000-000000000000"
REQUEST = {"type": "broadcast", "target": {"all": True}, "payload": {}}
ALERT = {"action": "alert", "target": {"all": True}, "payload": {}}
BATCH = {
    "messageId": ID,
    "type": "alert",
    "envelope": "{}",
    "connections": [{"connectionId": "c", "userId": "u", "connectedAt": "2026-11-23T08:00:00.000Z"}],
}
SECRET_VALUE = "SECRETsecretSECRET"


def faults(schema: str, instance: Any) -> dict[str, Fault]:
    """The faults found, by pointer: each has a problem and a fix."""
    with pytest.raises(InvalidMessage) as refusal:
        validate(schema, instance)
    assert all(fault.problem and fault.fix for fault in refusal.value.faults)
    return {fault.pointer: fault for fault in refusal.value.faults}


def nested(levels: int, kind: type = dict) -> Any:
    """That many objects or arrays, one in the other."""
    value: Any = kind()
    for _ in range(levels - 1):
        value = {"n": value} if kind is dict else [value]
    return value


@pytest.mark.parametrize(
    ("schema", "instance", "pointer", "problem", "fix"),
    [
        ("client-ping", {}, "/action", "is missing", "add action: Always ping"),
        ("client-ping", {"action": "pong"}, "/action", "does not have the one allowed value", 'use "ping"'),
        (
            "client-ping",
            {"action": "ping", "extra": 1},
            "/extra",
            "is not a field of this message",
            "remove it; fields: action, id",
        ),
        ("client-ping", {"action": "ping", "id": 7}, "/id", "is a number, not string", None),
        ("client-ping", {"action": "ping", "id": "a b"}, "/id", "does not have the right form", None),
        ("client-ping", {"action": "ping", "id": "a\n"}, "/id", "does not have the right form", None),
        ("client-ping", [], "", "is an array, not object", "send object"),
        ("client-ping", None, "", "is null, not object", "send object"),
        ("client-ping", 1.5, "", "is a number, not object", "send object"),
        ("client-ping", True, "", "is a boolean, not object", "send object"),
        ("client-ping", "x", "", "is a string, not object", "send object"),
        ("client-renew", {"action": "renew", "token": ""}, "/token", "is empty or too short", None),
        ("client-renew", {"action": "renew", "token": "x" * 8193}, "/token", "is longer than 8192", None),
        (
            "broadcast",
            REQUEST | {"type": "gossip"},
            "/type",
            "is not one of the allowed values",
            "use alert, shelter_update, broadcast",
        ),
        ("broadcast", REQUEST | {"target": {}}, "/target", "is empty or too short", None),
        ("broadcast", REQUEST | {"target": {"users": []}}, "/target/users", "is empty or too short", None),
        (
            "broadcast",
            REQUEST | {"target": {"users": [f"u{n}" for n in range(101)]}},
            "/target/users",
            "is longer than 100",
            None,
        ),
        (
            "broadcast",
            REQUEST | {"target": {"users": ["a", "a"]}},
            "/target/users",
            "repeats a value",
            "name each value once",
        ),
        (
            "broadcast",
            REQUEST | {"target": {"roles": ["admin", "Bad"]}},
            "/target/roles/1",
            "does not have the right form",
            None,
        ),
        (
            "broadcast",
            REQUEST | {"target": {"all": True, "roles": ["admin"]}},
            "/target/roles",
            "may not be given here",
            "all already includes everybody: leave out roles, or leave out all",
        ),
        ("broadcast", REQUEST | {"type": "shelter_update"}, "/shelterId", "is missing", "add shelterId"),
        ("broadcast", REQUEST | {"shelterId": "s1"}, "/shelterId", "may not be given here", None),
        (
            "broadcast",
            REQUEST | {"sender": {"userId": "u1"}},
            "/sender/role",
            "is missing beside userId",
            "add role",
        ),
        ("delivery-batch", BATCH | {"pace": {"rate": 0, "credit": 1}}, "/pace/rate", "is too small", None),
        ("delivery-batch", BATCH | {"pace": {"rate": 1, "credit": -1}}, "/pace/credit", "is too small", None),
        (
            "client-resume",
            {"action": "resume", "after": ID, "cursor": ID},
            "/after",
            "may not be given here",
            None,
        ),
    ],
)
def test_each_kind_of_fault_is_named_by_its_place_with_its_fix(
    schema: str, instance: Any, pointer: str, problem: str, fix: str | None
) -> None:
    found = faults(schema, instance)
    assert list(found) == [pointer]
    assert found[pointer].problem == problem
    assert fix is None or found[pointer].fix == fix


def test_what_follows_its_schema_passes() -> None:
    validate("broadcast", REQUEST | {"id": ID, "offline": "never", "sender": {"service": "alarms"}})
    validate("client-alert", ALERT | {"id": "a-1_B"})


def test_every_fault_is_found_at_once() -> None:
    instance = {"type": "gossip", "target": {"users": [1, "a b"], "planets": []}, "offline": "maybe", "x": 1}
    assert list(faults("broadcast", instance)) == [
        "/offline",
        "/payload",
        "/target/planets",
        "/target/users/0",
        "/target/users/1",
        "/type",
        "/x",
    ]


def test_pointers_escape_tildes_and_slashes_as_rfc_6901_does() -> None:
    assert list(faults("client-ping", {"action": "ping", "a/b~c": 1, "~1": 2})) == ["/a~1b~0c", "/~01"]


def test_a_hopeless_input_is_answered_within_one_frame() -> None:
    hopeless = {"action": "ping"} | {f"{n}" + "\0" * 1500: n for n in range(20)}
    unwieldy = {"action": "ping"} | {f"{n:02}" + "\0" * 197: n for n in range(30)}
    for instance in (
        hopeless,
        unwieldy,
        {"action": "ping", "~" * 32_000: 1},
        {"action": "ping", "é" * 16_000: 1},
    ):
        with pytest.raises(InvalidMessage) as refusal:
            validate("client-ping", instance)
        assert len(refusal.value.faults) <= MAX_FAULTS
        assert answered(reply(refusal.value, "a"))
    long_way = {"k" * 1000: {"l" * 1000: nested(MAX_DEPTH - 3)}}
    many = {"action": "alert", "payload": long_way | {f"{n}": nested(MAX_DEPTH + 1) for n in range(100)}}
    with pytest.raises(InvalidMessage) as refusal:
        validate("client-alert", many)
    assert len(refusal.value.faults) == MAX_FAULTS


@pytest.mark.parametrize("kind", [dict, list])
def test_a_payload_nests_up_to_the_limit_and_no_deeper(kind: type) -> None:
    validate("client-alert", ALERT | {"payload": {"n": nested(MAX_DEPTH - 1, kind)}})
    found = faults("client-alert", ALERT | {"payload": {"n": nested(MAX_DEPTH, kind)}})
    step = "/n" if kind is dict else "/0"
    assert list(found) == ["/payload/n" + step * (MAX_DEPTH - 1)]
    assert found.popitem()[1].problem == f"nests more than {MAX_DEPTH} levels deep"


@pytest.mark.parametrize("text", ["[" * 32_000, '{"a":' * 6_000])
def test_text_that_nests_however_deep_is_refused(text: str) -> None:
    with pytest.raises(InvalidJson):
        parse_object(text)


def test_nesting_that_the_parser_cannot_follow_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: Any, **__: Any) -> Any:
        raise RecursionError  # how deep it follows depends on the interpreter

    monkeypatch.setattr(json, "loads", give_up)
    with pytest.raises(InvalidJson) as refusal:
        parse_object("[[[]]]")
    assert refusal.value.faults[0].problem == f"nests more than {MAX_DEPTH} levels deep"


def test_an_instance_that_nests_however_deep_is_refused() -> None:
    (fault,) = faults("client-alert", ALERT | {"payload": nested(100_000)}).values()
    assert fault.problem == f"nests more than {MAX_DEPTH} levels deep"


@pytest.mark.parametrize("bad", ["\ud800", {"\udfff": 1}, [float("inf")], {"n": [float("nan")]}])
def test_what_json_can_escape_but_utf_8_cannot_carry_is_a_fault(bad: Any) -> None:
    assert list(faults("client-alert", ALERT | {"payload": {"x": bad}})) == [""]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expecting value at line 1, column 1"),
        ('{"a":\n1,}', "at line 2, column "),
        ("[]", "is an array, not an object"),
        ("7", "is a number, not an object"),
        ("null", "is null, not an object"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
    ],
)
def test_text_that_is_no_json_object_is_refused_with_the_place(text: str, problem: str) -> None:
    with pytest.raises(InvalidJson) as refusal:
        parse_object(text)
    (fault,) = refusal.value.faults
    assert fault.pointer == ""
    assert problem in fault.problem
    assert fault.fix


def test_a_json_object_in_any_script_is_parsed() -> None:
    assert parse_object('{"a": "héllo 世界 🌍", "b": 1e3}') == {"a": "héllo 世界 🌍", "b": 1000.0}


VALUES = st.recursive(
    st.just(SECRET_VALUE) | st.integers(10**20, 10**20 + 9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    ),
    max_leaves=5,
)
FIELDS = ["action", "id", "token", "target", "payload", "after", "cursor", "shelterId", "offline", "extra"]


@properties
@given(
    schema=st.sampled_from(["ping", "renew", "alert", "broadcast", "shelter-update", "resume"]),
    instance=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1),
)
def test_no_fault_repeats_a_value_that_was_sent(schema: str, instance: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        validate(f"client-{schema}", instance)
    shown = json.dumps([str(fault) for fault in refusal.value.faults]) + str(refusal.value)
    assert SECRET_VALUE not in shown
    assert "1" + "0" * 19 not in shown
