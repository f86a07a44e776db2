"""Values that JSON cannot represent: the error names the first one by its pointer."""

from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.errors import MusterError
from muster.faults import json_text, unserialisable

CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR


@pytest.mark.parametrize(
    ("value", "pointer", "problem"),
    [
        ({"payload": {"a": [1, {"b": float("nan")}]}}, "/payload/a/1/b", "not a finite number"),
        ({"payload": {"a": float("inf")}}, "/payload/a", "not a finite number"),
        ({"payload": {"a/b~c": float("-inf")}}, "/payload/a~1b~0c", "not a finite number"),
        ({"payload": {"at": datetime.now(UTC)}}, "/payload/at", "of the type datetime"),
        ({"payload": {"a": (1, {2})}}, "/payload/a/1", "of the type set"),
        ({"payload": MappingProxyType({"a": b"x"})}, "/payload/a", "of the type bytes"),
        ({"payload": {"a": "\ud800"}}, "/payload/a", "half of a surrogate pair"),
        ({"payload": {"\ud800": 1}}, "/payload", "a key"),
        ({"payload": {(1, 2): 1}}, "/payload", "a key"),
        ({"payload": {float("nan"): 1}}, "/payload", "a key"),
        ({"payload": {"a": [2**53]}}, "/payload/a/0", "an integer beyond 9007199254740991"),
        ({"payload": {"a": -(2**53)}}, "/payload/a", "an integer beyond 9007199254740991"),
        ({"payload": {"a": 10**5000}}, "/payload/a", "an integer beyond 9007199254740991"),
        ({"payload": {10**5000: 1}}, "/payload", "a key"),
        ({"payload": CIRCULAR}, "/payload", "contains itself"),
        (float("nan"), "", "not a finite number"),
    ],
)
def test_the_first_value_that_json_cannot_represent_is_named(
    value: object, pointer: str, problem: str
) -> None:
    fault = unserialisable(value)
    assert fault is not None
    assert fault.pointer == pointer
    assert problem in fault.problem
    with pytest.raises(MusterError) as raised:
        json_text(value, MusterError)
    str(raised.value).encode()
    assert str(raised.value).startswith(pointer or "The message")
    assert raised.value.fix
    assert raised.value.__cause__ is raised.value.__context__ is None


def test_mappings_tuples_and_plain_keys_are_json() -> None:
    value = MappingProxyType({"ü": (1, None, True), 2: MappingProxyType({}), 2**60: 2**53 - 1})
    text = '{"ü":[1,null,true],"2":{},"1152921504606846976":9007199254740991}'
    assert json_text(value, MusterError) == text
    assert unserialisable(value) is None


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.characters(categories=["Cs"]))
    | st.binary()
    | st.dates(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.dictionaries(st.text(st.characters()) | st.floats() | st.integers() | st.binary(), inner)
    ),
    max_leaves=8,
)


@given(value=VALUES)
def test_a_value_is_serialised_or_its_pointer_is_named(value: object) -> None:
    fault = unserialisable(value)
    try:
        json_text(value, MusterError).encode()
    except MusterError as error:
        assert fault is not None
        str(error).encode()
    else:
        assert fault is None
