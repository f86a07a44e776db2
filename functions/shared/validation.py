"""JSON Schema validation whose outcome a person can act on: every fault, by pointer, with its fix."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource

from functions.shared.errors import Fault, InvalidJson, InvalidMessage

SCHEMAS = Path(__file__).parents[2] / "schemas"

MAX_DEPTH = 32
"""How deep a payload may nest: far beyond any real message, and safely within every JSON parser's limits."""

MAX_FAULTS = 20
MAX_POINTER = 200
"""How many faults are listed, and up to how many characters a pointer goes on into the input: an answer about
a hopeless input still fits one frame."""


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises `InvalidJson` with a fault that says where the text goes wrong."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        problem = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise InvalidJson(faults=[Fault("", problem, "send one JSON object as text")]) from None
    except ValueError as error:
        raise InvalidJson(faults=[Fault("", str(error), "send a finite number, or null")]) from None
    except RecursionError:
        raise InvalidJson(faults=[too_deep("")]) from None
    if not isinstance(value, dict):
        raise InvalidJson(faults=[Fault("", f"is {_kind(value)}, not an object", 'send {"action": ...}')])
    return value


def validate(schema: str, instance: Any) -> None:
    """Hold `instance` to `schemas/<schema>.schema.json`.

    Raises `InvalidMessage` listing up to MAX_FAULTS faults. No fault repeats a value that was sent: it might
    be a secret in the wrong place.
    """
    try:
        json.dumps(instance, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        problem = "holds half of a surrogate pair, or a number too large to pass on"
        fix = "send whole characters and numbers that fit a double"
        raise InvalidMessage(faults=[Fault("", problem, fix)]) from None
    except RecursionError:
        raise InvalidMessage(faults=[too_deep("")]) from None
    deep = [too_deep(pointer) for pointer in _deeper_than(instance, MAX_DEPTH)]
    if deep:
        raise InvalidMessage(faults=listed(deep))
    faults = [fault for error in _validator(schema).iter_errors(instance) for fault in _faults(error)]
    if faults:
        raise InvalidMessage(faults=listed(faults))


def listed(faults: Iterable[Fault]) -> list[Fault]:
    """The first fault of each place in order, as many and as long as fit one frame."""
    found: dict[str, Fault] = {}
    for fault in faults:
        pointer = fault.pointer
        while len(pointer) > MAX_POINTER:
            pointer = pointer.rpartition("/")[0]
        found.setdefault(pointer, replace(fault, pointer=pointer))
    return [found[pointer] for pointer in sorted(found)][:MAX_FAULTS]


def too_deep(pointer: str) -> Fault:
    """The fault of a value that nests deeper than MAX_DEPTH."""
    return Fault(pointer, f"nests more than {MAX_DEPTH} levels deep", "send a flatter value")


@cache
def _registry() -> Registry[Any]:
    schemas = [json.loads(path.read_text()) for path in sorted(SCHEMAS.glob("*.schema.json"))]
    return Registry().with_resources((schema["$id"], Resource.from_contents(schema)) for schema in schemas)


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    return Draft202012Validator(schema, registry=_registry())


def _faults(error: ValidationError) -> Iterator[Fault]:
    at = "".join(_escape(part) for part in error.absolute_path)
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
                        yield Fault(at + _escape(name), f"is missing beside {given}", f"add {name}")
        case "additionalProperties":
            known = ", ".join(schema["properties"])
            for name in value.keys() - schema["properties"].keys():
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


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _deeper_than(value: Any, limit: int) -> Iterator[str]:
    """The pointers at which nesting passes `limit`, found without recursion."""
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    while stack:
        pointer, node, depth = stack.pop()
        if not isinstance(node, dict | list):
            continue
        if depth > limit:
            yield pointer
            continue
        children = node.items() if isinstance(node, dict) else enumerate(node)
        stack.extend((pointer + _escape(key), child, depth + 1) for key, child in children)
