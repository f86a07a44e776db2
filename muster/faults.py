"""What is wrong with a message: shared by the client, the broadcaster and the command line."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from muster.errors import MusterError

MAX_DEPTH = 100
"""How deep the search for what JSON cannot hold goes: the server accepts 32 levels of payload."""

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly [RFC 8259 section 6, RFC 7493 section 2.2]. Step
Functions reads numbers as doubles, so a larger one could reach people as another number."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a message, and how to put it right.

    `pointer` is a JSON Pointer [RFC 6901] into the message; empty for the message as a whole.
    """

    pointer: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.pointer or 'the message'} {self.problem}: {self.fix}"


def parse_faults(faults: Iterable[Mapping[str, Any]]) -> tuple[Fault, ...]:
    """Take the `faults` of a server's error or of a failed execution's cause."""
    return tuple(Fault(fault["pointer"], fault["problem"], fault["fix"]) for fault in faults)


def json_text(value: object, error: type[MusterError]) -> str:
    """Return `value` as compact JSON that UTF-8 can encode.

    Mappings become objects, and tuples arrays. For what JSON cannot hold, such as NaN, a date, half of a
    surrogate pair or an integer beyond MAX_INTEGER, it raises `error`, which names the place by JSON Pointer.
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
    """Return the first place in `value` that JSON cannot hold, or None. The fault never quotes the value."""
    stack: list[tuple[str, object]] = [("", value)]
    while stack:
        pointer, value = stack.pop()
        if pointer.count("/") > MAX_DEPTH:
            # The place itself would be a line of its own: name the member of the message that holds it.
            top = "/".join(pointer.split("/", 2)[:2])
            return Fault(top, f"nests over {MAX_DEPTH} levels deep, or contains itself", "flatten it")
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            return Fault(
                pointer, f"is an integer beyond {MAX_INTEGER}, which readers of JSON round", "send it as text"
            )
        if problem := _scalar_problem(value):
            return Fault(pointer, *problem)
        members: Iterable[tuple[object, object]] = ()
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str | int | float | None) or _scalar_problem(key):
                    return Fault(pointer, "has a key that JSON cannot hold", "use plain text for each key")
            members = value.items()
        elif isinstance(value, list | tuple):
            members = enumerate(value)
        stack += reversed([(f"{pointer}/{_token(key)}", member) for key, member in members])
    return None


def _scalar_problem(value: object) -> tuple[str, str] | None:
    """What is wrong with a value, leaving aside what it contains, and the fix."""
    try:
        match value:
            case float() if not math.isfinite(value):
                return (
                    "is not a finite number, and JSON has no NaN or Infinity",
                    "use a finite number or null",
                )
            case str():
                value.encode()
            case int():
                int.__repr__(value)
            case None | list() | tuple() | float() | Mapping():
                pass
            case _:
                return (
                    f"is of the type {type(value).__name__}, which JSON does not have",
                    "use text, a number, an array or an object",
                )
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which UTF-8 cannot encode", "use complete characters"
    except ValueError:
        # Python's limit on converting integers to text.
        return "is an integer with too many digits", "use text"
    return None


def _token(key: object) -> str:
    """A key as a part of a JSON Pointer [RFC 6901] that can be printed anywhere."""
    return str(key).replace("~", "~0").replace("/", "~1")


def _plain_mapping(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError
