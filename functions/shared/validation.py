"""JSON Schema validation that reports every fault with its JSON pointer and a fix.

Any client may send any input, so time and memory grow linearly with its size.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from functions.shared.errors import Fault, InvalidJson, InvalidMessage, TooLarge

SCHEMAS = Path(__file__).parents[2] / "schemas"

MAX_DEPTH = 32
"""How deep a payload may nest: deeper than real messages, and within the limits of every JSON parser."""

MAX_VALUES = 16 * 1024
"""How many values an input may have. A frame of 32 KB has no room for more, and neither has a message."""

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly [RFC 8259 section 6, RFC 7493 section 2.2]."""

MAX_FAULTS = 20
MAX_FAULTS_BYTES = 24 * 1024
MAX_POINTER = 200
"""The most faults that are listed, their bytes, and the characters of a pointer. A list of faults always
fits into one frame, and into the 32,768 characters of an execution's cause [Step Functions, Fail]."""

ENOUGH_FAULTS = 5 * MAX_FAULTS
"""After this number of faults, the rest of the input is skipped."""


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises `InvalidJson` with the position of the error."""
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_int=_integer, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        raise _not_json(
            f"{error.msg} at line {error.lineno}, column {error.colno}", "send one JSON object as text"
        ) from None
    except RecursionError:
        raise InvalidJson(faults=[too_deep("")]) from None
    if not isinstance(value, dict):
        raise _not_json(f"is {_kind(value)}, not an object", 'send {"action": ...}')
    return value


def validate(schema: str, instance: Any) -> None:
    """Validate `instance` against `schemas/<schema>.schema.json`.

    Raises `InvalidMessage` or `TooLarge` with up to MAX_FAULTS faults. A fault never contains the value that
    was sent, which might be a secret in the wrong place.
    """
    faults = listed(_untransmittable(instance))
    if not faults:
        errors = _validator(schema).iter_errors(instance)
        faults = listed(fault for error in errors for fault in _faults(error))
    if faults:
        raise InvalidMessage(faults=faults)


def listed(faults: Iterable[Fault]) -> list[Fault]:
    """The first fault of each place, sorted by pointer, as many as fit into one frame."""
    found: dict[str, Fault] = {}
    for fault in islice(faults, ENOUGH_FAULTS):
        pointer = fault.pointer
        while len(pointer) > MAX_POINTER:
            pointer = pointer.rpartition("/")[0]
        found.setdefault(pointer, replace(fault, pointer=pointer))
    room = MAX_FAULTS_BYTES
    shown: list[Fault] = []
    for pointer in sorted(found)[:MAX_FAULTS]:
        room -= len(json.dumps(asdict(found[pointer]), ensure_ascii=False).encode())
        if room < 0:
            break
        shown.append(found[pointer])
    return shown


def too_deep(pointer: str) -> Fault:
    """The fault of a value that nests deeper than MAX_DEPTH."""
    return Fault(pointer, f"nests more than {MAX_DEPTH} levels deep", "send a flatter value")


# jsonschema's own versions of these keywords read a value more than once, or collect faults that are dropped
# here.


def _closed(
    validator: Any, allowed: bool, instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    if isinstance(instance, dict) and any(name not in schema["properties"] for name in instance):
        yield ValidationError("has other fields")


def _items(validator: Any, items: Any, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    if _short_enough(instance, schema):
        yield from Draft202012Validator.VALIDATORS["items"](validator, items, instance, schema)


def _unique_strings(
    validator: Any, unique: bool, instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    # jsonschema compares every pair of items that it cannot sort. An item that is not a string is another
    # fault.
    if unique and _short_enough(instance, schema):
        strings = [item for item in instance if isinstance(item, str)]
        if len(set(strings)) < len(strings):
            yield ValidationError("repeats a value")


def _short_enough(instance: Any, schema: dict[str, Any]) -> bool:
    """Whether to check the items of a list: a list that is too long is one fault already."""
    return isinstance(instance, list) and len(instance) <= schema.get("maxItems", len(instance))


_Validator: Any = extend(  # type: ignore[no-untyped-call] # the stubs leave its arguments untyped
    Draft202012Validator,
    {"additionalProperties": _closed, "items": _items, "uniqueItems": _unique_strings},
)


@cache
def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    # For a schema that names its dialect, jsonschema would use its own validator instead of `_Validator`.
    del schema["$schema"]
    return schema


@cache
def _registry() -> Registry[Any]:
    names = [path.name.removesuffix(".schema.json") for path in sorted(SCHEMAS.glob("*.schema.json"))]
    resources = [DRAFT202012.create_resource(_schema(name)) for name in names]
    return Registry().with_resources((resource.id() or "", resource) for resource in resources)


@cache
def _validator(name: str) -> Any:
    return _Validator(_schema(name), registry=_registry())


def _faults(error: ValidationError) -> Iterator[Fault]:
    at = _pointer(error.absolute_path)
    schema: Any = error.schema
    limit: Any = error.validator_value
    value: Any = error.instance
    hint = _sentence(schema.get("description"))
    match error.validator:
        case "required":
            for name in limit:
                if name not in value:
                    yield Fault(at + _escape(name), "is missing", _property_hint(schema, name))
        case "dependentRequired":
            for given, names in limit.items():
                for name in names if given in value else ():
                    if name not in value:
                        yield Fault(at + _escape(name), f"is missing, but {given} needs it", f"add {name}")
        case "additionalProperties":
            known = ", ".join(schema["properties"])
            for name in (name for name in value if name not in schema["properties"]):
                yield Fault(
                    at + _escape(name), "is not a field of this message", f"remove it; fields: {known}"
                )
        case "type":
            names = limit if isinstance(limit, str) else " or ".join(limit)
            yield Fault(at, f"is {_kind(value)}, not {names}", hint if at and hint else f"send {names}")
        case "enum":
            yield Fault(at, "is not one of the allowed values", "use " + ", ".join(map(str, limit)))
        case "const":
            yield Fault(at, "does not have the one allowed value", f"use {json.dumps(limit)}")
        case "minProperties" | "minItems" | "minLength":
            yield Fault(at, "is empty or too short", hint)
        case "minimum" | "exclusiveMinimum":
            yield Fault(at, "is too small", hint)
        case "maxItems" | "maxLength":
            yield Fault(at, f"is longer than {limit}", hint)
        case "uniqueItems":
            yield Fault(at, "repeats a value", "name each value once")
        case "not" if not limit:
            yield Fault(at, "may not be given here", hint)
        case _:
            yield Fault(at, "does not have the right form", hint)


def _property_hint(schema: dict[str, Any], name: str) -> str:
    described = schema.get("properties", {}).get(name, {}).get("description")
    return f"add {name}: {_sentence(described)}" if described else f"add {name}"


def _sentence(description: str | None) -> str:
    return (description or "").rstrip(".")


def _pointer(path: Iterable[str | int]) -> str:
    return "".join(_escape(part) for part in path)


def _escape(part: str | int) -> str:
    return "/" + str(part).replace("~", "~0").replace("/", "~1")


def _kind(value: Any) -> str:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "null")


def _not_json(problem: str, fix: str) -> InvalidJson:
    return InvalidJson(faults=[Fault("", problem, fix)])


def _refuse_constant(name: str) -> Any:
    raise _not_json(f"{name} is not JSON", "send a finite number, or null")


def _integer(digits: str) -> int:
    # Python parses at most 4,300 digits. The first 100 are enough to reject the number for its size.
    return int(digits[:100])


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            # Which of the two a parser uses depends on the parser [RFC 8259 section 4].
            shown = json.dumps(name)[:MAX_POINTER]
            raise _not_json(f"names {shown} twice in one object", "name each field once")
        value[name] = item
    return value


def _untransmittable(instance: Any) -> Iterator[Fault]:
    """Faults of values that cannot be sent on unchanged, in the order of the input.

    Without recursion, and with memory for the path to one value only. Raises `TooLarge` after MAX_VALUES.
    """
    path: list[str | int] = []
    levels = [_entries(instance)]
    values = 0
    while levels:
        for name, value in levels[-1]:
            values += 1
            if values > MAX_VALUES:
                problem = f"contains more than {MAX_VALUES} values, which no message has room for"
                raise TooLarge(faults=[Fault("", problem, "send less, or a link to the rest")])
            if isinstance(name, str) and _half_character(name):
                # A pointer with this name could not be sent either.
                problem = "has a field whose name contains half of a surrogate pair"
                yield Fault(_pointer(path), problem, "send whole characters")
                continue
            path.append(name)
            if not isinstance(value, dict | list):
                if flaw := _flaw(value):
                    problem, fix = flaw
                    yield Fault(_pointer(path), problem, fix)
            elif len(levels) > MAX_DEPTH:
                yield too_deep(_pointer(path))
            else:
                levels.append(_entries(value))
                break
            path.pop()
        else:
            levels.pop()
            if path:
                path.pop()


def _entries(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return iter(value.items())
    return enumerate(value) if isinstance(value, list) else iter(())


def _flaw(value: Any) -> tuple[str, str] | None:
    """The problem of a value that is neither an object nor an array, and its fix; None if it is fine."""
    match value:
        case str() if _half_character(value):
            return "contains half of a surrogate pair", "send whole characters"
        case float() if not math.isfinite(value):
            return "is too large for a JSON number", "send a number that fits into a double, or text"
        case int() if abs(value) > MAX_INTEGER:
            return f"is an integer beyond {MAX_INTEGER}, which JSON parsers round", "send it as text"
    return None


def _half_character(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
