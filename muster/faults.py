"""What is wrong with a message, as the schemas put it: shared by the client and the broadcaster."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


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
