"""What is wrong with a message: shared by the client, the broadcaster and the command line."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from muster.errors import MusterError
from muster.types import FaultEntry

MAX_DEPTH = 100
"""How deep a message is checked. The server accepts 32 levels of payload."""

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly [RFC 8259 section 6, RFC 7493 section 2.2]. Step
Functions reads numbers as doubles, so a larger one could arrive as another number."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a message, and how to correct it.

    `pointer` is a JSON Pointer [RFC 6901] into the message; empty for the message as a whole.
    """

    pointer: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.pointer or 'the message'} {self.problem}: {self.fix}"


def parse_faults(faults: Iterable[FaultEntry | Mapping[str, Any]]) -> tuple[Fault, ...]:
    """Return the faults that a server's error or the cause of a failed execution lists."""
    return tuple(Fault(fault["pointer"], fault["problem"], fault["fix"]) for fault in faults)


def json_text(value: object, error: type[MusterError]) -> str:
    """Return `value` as compact JSON that UTF-8 can encode.

    Mappings become objects, and tuples become arrays. Raises `error` for a value that JSON cannot represent,
    such as NaN, a date, half of a surrogate pair or an integer beyond MAX_INTEGER, and names its JSON
    Pointer.
    """
    if not (fault := unserialisable(value)):
        try:
            text = json.dumps(
                value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain_mapping
            )
            text.encode()
        except (TypeError, ValueError, RecursionError):
            fault = Fault("", "cannot be written as JSON", "use plain JSON values")
        else:
            return text
    raise error(f"{fault.pointer or 'The message'} {fault.problem}.", fix=f"{fault.fix.capitalize()}.")


def unserialisable(value: object) -> Fault | None:
    """Return the first place in `value` that JSON cannot represent, or None. The fault quotes no value."""
    stack: list[tuple[str, object]] = [("", value)]
    while stack:
        pointer, value = stack.pop()
        if pointer.count("/") > MAX_DEPTH:
            # The full pointer would be very long: name the member of the message that contains the place.
            top = "/".join(pointer.split("/", 2)[:2])
            return Fault(top, f"nests over {MAX_DEPTH} levels deep, or contains itself", "flatten it")
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            return Fault(
                pointer, f"is an integer beyond {MAX_INTEGER}, which readers of JSON round", "send it as text"
            )
        if fault := _scalar_fault(pointer, value):
            return fault
        members: Iterable[tuple[object, object]] = ()
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str | int | float | None) or _scalar_fault(pointer, key):
                    problem = "has a key that JSON cannot represent"
                    return Fault(pointer, problem, "use plain text for each key")
            members = value.items()
        elif isinstance(value, list | tuple):
            members = enumerate(value)
        stack += reversed([(f"{pointer}/{_token(key)}", member) for key, member in members])
    return None


def _scalar_fault(pointer: str, value: object) -> Fault | None:
    """Return what is wrong with a value itself, not with its members."""
    try:
        match value:
            case float() if not math.isfinite(value):
                problem = "is not a finite number, and JSON has no NaN or Infinity"
                return Fault(pointer, problem, "use a finite number or null")
            case str():
                value.encode()
            case int():
                int.__repr__(value)
            case None | list() | tuple() | float() | Mapping():
                pass
            case _:
                problem = f"is of the type {type(value).__name__}, which JSON does not have"
                return Fault(pointer, problem, "use text, a number, an array or an object")
    except UnicodeEncodeError:
        problem = "contains half of a surrogate pair, which UTF-8 cannot encode"
        return Fault(pointer, problem, "use complete characters")
    except ValueError:
        # Python's limit on converting integers to text.
        return Fault(pointer, "is an integer with too many digits", "use text")
    return None


def _token(key: object) -> str:
    """Return a key as a part of a JSON Pointer [RFC 6901]."""
    return str(key).replace("~", "~0").replace("/", "~1")


def _plain_mapping(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError
