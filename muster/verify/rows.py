"""The rows of a report: what each check found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Result = Literal["held", "failed", "unknown"]
"""`held`: the deployment keeps the promise. `failed`: it does not. `unknown`: the run could not tell."""


class Broken(Exception):
    """The deployment does not keep the check's promise: what was seen, and the fix."""

    def __init__(self, seen: str, fix: str) -> None:
        super().__init__(seen)
        self.fix = fix


class CannotTell(Exception):
    """The check proves nothing about the promise: the reason, and what would help."""

    def __init__(self, why: str, fix: str | None = None) -> None:
        super().__init__(why)
        self.fix = fix


@dataclass(frozen=True)
class Row:
    """The result of one check. `detail` is what was seen, or why the run could not tell."""

    name: str
    promise: str
    source: str
    result: Result
    detail: str
    fix: str | None
    seconds: float


@dataclass
class Report:
    """All rows of a run, and every resource that it could not remove, with the reason."""

    run: str
    rows: list[Row] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def result(self) -> Result:
        """`failed` if a row failed or anything is left; else `unknown` if a row is, or there is none."""
        results = {row.result for row in self.rows}
        if "failed" in results or self.left:
            return "failed"
        return "unknown" if "unknown" in results or not self.rows else "held"
