import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from functions.shared import validation
from functions.shared.connections import MAX_ID_BYTES, id_problem
from functions.shared.errors import Fault, InvalidJson, InvalidMessage, MusterError, TooLarge, reply
from functions.shared.validation import (
    MAX_DEPTH,
    MAX_FAULTS,
    MAX_INTEGER,
    MAX_VALUES,
    listed,
    parse_object,
    validate,
)
from tests.support.functions import (
    FRAME_BYTES,
    Hostile,
    answered,
    cpu_seconds,
    hostile,
    peak_bytes,
    properties,
)

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
    """This number of nested objects or arrays."""
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
            "all already includes everyone: leave out roles, or leave out all",
        ),
        ("broadcast", REQUEST | {"type": "shelter_update"}, "/shelterId", "is missing", "add shelterId"),
        ("broadcast", REQUEST | {"shelterId": "s1"}, "/shelterId", "may not be given here", None),
        (
            "broadcast",
            REQUEST | {"sender": {"userId": "u1"}},
            "/sender/role",
            "is missing, but userId needs it",
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


def test_a_valid_message_passes() -> None:
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


def test_the_faults_of_a_hostile_input_fit_into_one_frame() -> None:
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
def test_text_of_any_depth_is_rejected(text: str) -> None:
    with pytest.raises(InvalidJson):
        parse_object(text)


def test_nesting_beyond_the_parsers_limit_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: Any, **__: Any) -> Any:
        raise RecursionError  # the limit depends on the interpreter

    monkeypatch.setattr(json, "loads", give_up)
    with pytest.raises(InvalidJson) as refusal:
        parse_object("[[[]]]")
    assert refusal.value.faults[0].problem == f"nests more than {MAX_DEPTH} levels deep"


def test_an_instance_of_any_depth_is_rejected() -> None:
    (fault,) = faults("client-alert", ALERT | {"payload": nested(100_000)}).values()
    assert fault.problem == f"nests more than {MAX_DEPTH} levels deep"


@pytest.mark.parametrize(
    ("bad", "pointer"),
    [
        ("\ud800", "/payload/x"),
        ({"\udfff": 1}, "/payload/x"),
        ({"\udfff": {"\ud800": 1}, "y": "\udfff"}, "/payload/x"),
        ([float("inf")], "/payload/x/0"),
        ({"n": [1, float("nan")]}, "/payload/x/n/1"),
        ([MAX_INTEGER + 1], "/payload/x/0"),
        (-MAX_INTEGER - 1, "/payload/x"),
    ],
)
def test_a_value_that_cannot_be_sent_on_is_a_fault(bad: Any, pointer: str) -> None:
    found = faults("client-alert", ALERT | {"payload": {"w": True, "x": bad, "z": "\U0001f30d"}})
    assert next(iter(found)) == pointer


def test_integers_that_every_parser_keeps_pass() -> None:
    validate("client-alert", ALERT | {"payload": {"x": [MAX_INTEGER, -MAX_INTEGER, 0, True, 1e300]}})


def test_all_values_that_cannot_be_sent_on_are_reported_at_once() -> None:
    payload = {"a": [float("inf"), 1, "\ud800"], "b": {"c": 2**60}, "d": nested(MAX_DEPTH + 1)}
    pointers = ["/payload/a/0", "/payload/a/2", "/payload/b/c", "/payload/d" + "/n" * (MAX_DEPTH - 1)]
    assert list(faults("client-alert", ALERT | {"payload": payload})) == pointers


def test_an_input_with_too_many_values_is_too_large() -> None:
    validate("client-alert", ALERT | {"payload": {"a": [0] * (MAX_VALUES - 5)}})
    with pytest.raises(TooLarge):
        validate("client-alert", ALERT | {"payload": {"a": [0] * (MAX_VALUES - 4)}})
    assert len(json.loads(Hostile("[", ("0",), "]").text())) < MAX_VALUES, "a frame has no room for more"


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
        ('{"a": 1, "b": {"c": 1, "c": 1}}', 'names "c" twice in one object'),
        ('{"\\ud800": 1, "\\ud800": 1}', 'names "\\ud800" twice in one object'),
    ],
)
def test_text_that_is_not_a_json_object_is_rejected_with_the_position(text: str, problem: str) -> None:
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
def test_no_fault_contains_a_value_that_was_sent(schema: str, instance: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        validate(f"client-{schema}", instance)
    shown = json.dumps([str(fault) for fault in refusal.value.faults]) + str(refusal.value)
    assert SECRET_VALUE not in shown
    assert "1" + "0" * 19 not in shown


def test_an_integer_with_any_number_of_digits_is_a_fault() -> None:
    frame = parse_object('{"action":"alert","target":{"all":true},"payload":{"n":-' + "1" * 30_000 + "}}")
    (pointer,) = faults("client-alert", frame)
    assert pointer == "/payload/n"


def test_faults_with_long_fixes_still_fit_one_frame() -> None:
    """The fix for an unknown role lists all roles, up to 2,400 characters."""
    refusal = InvalidMessage(
        faults=listed(Fault(f"/target/roles/{n}", "is unknown", "x" * 2_400) for n in range(100))
    )
    assert 1 < len(refusal.faults) < MAX_FAULTS
    assert answered(reply(refusal, "a" * 64))


FRAME_CPU_SECONDS = 0.05
"""The limit for any frame on an idle processor; tests allow twice as much."""


def verdict(schema: str, frame: Any) -> MusterError | None:
    """The error for a frame, given as text or parsed, or None."""
    try:
        validate(schema, parse_object(frame) if isinstance(frame, str) else frame)
    except MusterError as refusal:
        return refusal
    return None


@settings(max_examples=100, deadline=None, database=None)
@given(hostile('{"action":"alert",'))
@example(Hostile('{"action":"alert","payload":{},"target":{"users":["a",', ("{n}",), "]}}"))
@example(Hostile('{"action":"alert","payload":{},"target":{"users":["a",', ("[{n}]",), "]}}"))
def test_any_frame_is_validated_within_50_ms_and_a_few_times_its_memory(frame: Hostile) -> None:
    text = frame.text()
    assert FRAME_BYTES - 1_000 < len(text.encode()) <= FRAME_BYTES
    refusal = verdict("client-alert", text)
    assert refusal is None or answered(reply(refusal, "a" * 64))
    taken = cpu_seconds(lambda: verdict("client-alert", text), FRAME_CPU_SECONDS)
    assert taken < 2 * FRAME_CPU_SECONDS
    if not isinstance(refusal, InvalidJson):
        parsed = parse_object(text)
        # Without the parsed frame, which takes up to 45 times the memory of its text.
        assert peak_bytes(lambda: verdict("client-alert", parsed)) < 8 * FRAME_BYTES


@pytest.mark.parametrize("schema", ["client-ping", "client-renew", "client-resume", "client-shelter-update"])
def test_a_frame_of_thousands_of_unknown_fields_is_cheap_whatever_its_action(schema: str) -> None:
    text = Hostile('{"action":"x",', ('"{n:x}":[]',), "}").text()
    assert cpu_seconds(lambda: verdict(schema, text), FRAME_CPU_SECONDS) < 2 * FRAME_CPU_SECONDS


ID_TEXT = st.text(
    st.characters(exclude_categories=())
    | st.sampled_from(' #\t\n\x00\x1c\x7f\x85\xa0\ufeff\u2028\u3000\ud800"\\'),
    max_size=130,
) | st.text('ab世é"\\', min_size=30, max_size=130)


@properties
@given(ID_TEXT)
@example("a\n")
@example("世" * 128)
@example('"' * 64)
@example('"' * 65)
@example("x" * 128)
@example("x" * 129)
def test_the_rule_for_ids_is_that_of_the_schemas(text: str) -> None:
    """`$connect` checks ids without jsonschema, whose import would slow every cold start."""
    try:
        validate("target", {"users": [text], "shelters": [text]})
        well_formed = True
    except InvalidMessage:
        well_formed = False
    if (problem := id_problem(text)) is None:
        assert well_formed
        assert len(json.dumps(text, ensure_ascii=False).encode()) - 2 <= MAX_ID_BYTES
    elif well_formed:
        assert (
            problem == f"takes {len(json.dumps(text, ensure_ascii=False).encode()) - 2} bytes, more than 128"
        )


def test_only_lists_of_strings_must_be_unique() -> None:
    """Items of other types are not compared."""

    def lists(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            yield from [node] if "uniqueItems" in node else []
        for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from lists(part)

    schemas = [json.loads(path.read_text()) for path in validation.SCHEMAS.glob("*.schema.json")]
    kinds = {node["items"]["$ref"] for node in lists(schemas)}
    assert kinds == {f"common.schema.json#/$defs/{name}" for name in ("role", "userId", "shelterId")}
