"""Reads the transcripts of docs/protocol.md and compares frames with them.

A fenced block is a transcript. A line is a frame, `> ` sent or `< ` received, or a comment with `# `. A line
that begins with white space continues the previous frame.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.support import ROOT

PAGE = ROOT / "docs" / "protocol.md"

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_EXECUTION = re.compile(r"[0-9a-f]{64}")
PLACEHOLDERS = (UUID, _TIME, _EXECUTION)
"""Strings that match any other of the same form: message ids, times, execution names."""


@dataclass(frozen=True)
class Step:
    """One line of a transcript: `mark` is `>`, `<` or `#`."""

    mark: str
    text: str

    @cached_property
    def frame(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Transcript:
    """A fenced block, under the heading `title`."""

    title: str
    steps: tuple[Step, ...]


def transcripts(page: str) -> list[Transcript]:
    """Return the transcripts of a page in Markdown."""
    found: list[Transcript] = []
    title = ""
    lines: list[str] | None = None
    for line in page.splitlines():
        if line.startswith("```"):
            if lines is None:
                lines = []
            else:
                found.append(Transcript(title, tuple(_steps(lines))))
                lines = None
        elif lines is not None:
            lines.append(line)
        elif line.startswith("#"):
            title = line.lstrip("# ")
    return found


def _steps(lines: list[str]) -> Iterator[Step]:
    joined: list[str] = []
    for line in lines:
        if line.startswith(" "):
            joined[-1] += line
        else:
            joined.append(line)
    for line in joined:
        mark, _, text = line.partition(" ")
        assert mark in ("<", ">", "#"), f"not a line of a transcript: {line}"
        yield Step(mark, text)


def differences(page: Any, wire: Any, ids: dict[str, str], at: str = "") -> Iterator[str]:
    """Yield each difference between the page and a received value, by JSON pointer.

    Objects have the same fields, arrays the same length, and values are equal, or of the same form where the
    page's value is a placeholder. `ids` maps the page's message ids to real ones; new ones are added to it.
    """
    if isinstance(page, dict) and isinstance(wire, dict):
        for name in page.keys() - wire.keys():
            yield f"{at}/{name}: not received"
        for name in wire.keys() - page.keys():
            yield f"{at}/{name}: not in the page"
        for name in page.keys() & wire.keys():
            yield from differences(page[name], wire[name], ids, f"{at}/{name}")
    elif isinstance(page, list) and isinstance(wire, list):
        if len(page) != len(wire):
            yield f"{at}: {len(wire)} items, {len(page)} in the page"
        for number, (shown, received) in enumerate(zip(page, wire, strict=False)):
            yield from differences(shown, received, ids, f"{at}/{number}")
    elif not (type(page) is type(wire) and _same(page, wire, ids)):
        yield f"{at}: {wire!r}, {page!r} in the page"


def _same(page: object, wire: object, ids: dict[str, str]) -> bool:
    if not (isinstance(page, str) and isinstance(wire, str)):
        return page == wire
    form = next((form for form in PLACEHOLDERS if form.fullmatch(page)), None)
    if form is None:
        return page == wire
    if form is not UUID:
        return form.fullmatch(wire) is not None
    if page not in ids and UUID.fullmatch(wire) and wire not in ids.values():
        ids[page] = wire
    return wire == ids.get(page)
