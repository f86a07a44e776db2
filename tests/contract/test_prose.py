"""Docs, docstrings, comments and error texts avoid phrases that do not read as plain technical English.

The list is short. Each phrase has a standard term (in its comment) and is wrong anywhere in this repository.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIXES = {".cfg", ".hcl", ".json", ".md", ".py", ".sh", ".tf", ".toml", ".txt", ".yaml", ".yml"}

BANNED = (
    r"(?:is|are|was|were|be|been) told",  # gets an error, is notified
    r"not to be had",  # not available, not found
    r"whoever",  # the user, the role, the client that
    r"besides",  # also, in addition
    r"hand(?:s|ed|ing)? (?:\w+ )?over",  # notify, publish to SNS, pass
    r"hand-over",  # notification
    r"handed to",  # published to, passed to
    r"at hand",  # available, installed
    r"nobody waits",  # no recipient blocks another
    r"so that nobody",  # so that no user
    r"at least so many",  # at least N
    r"tries? doors",  # an unauthorised client
)

# A phrase may continue on the next line, after a comment mark or the quotation marks of adjacent strings.
PATTERN = re.compile(rf"\b(?:{'|'.join(BANNED)})\b".replace(" ", r"[\s#\"]+"), re.IGNORECASE)


def findings(text: str) -> list[tuple[int, str]]:
    """Return the line number and the text of each banned phrase."""
    return [
        (text.count("\n", 0, found.start()) + 1, " ".join(found[0].split()))
        for found in PATTERN.finditer(text)
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("The client is told.", 1),
        ("A first line.\nIt is handed\nover.", 2),
        ("# The user was\n    # told.", 1),
        ('"nobody "\n"waits"', 1),
        ("Whoever connects", 1),
        ("after the hand-over", 1),
    ],
)
def test_finds_a_phrase(text: str, line: int) -> None:
    assert [number for number, _ in findings(text)] == [line]


@pytest.mark.parametrize("text", ["hand_over(users)", "It told the user.", "a beside b", "import handover"])
def test_ignores_names_and_other_words(text: str) -> None:
    assert findings(text) == []


def test_no_file_contains_a_banned_phrase() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    read = [
        path
        for path in paths
        if path.is_file() and (path.suffix in SUFFIXES or path.name == "Makefile") and path != Path(__file__)
    ]
    assert len(read) > 100

    found = [
        f"{path.relative_to(ROOT)}:{number}: {phrase}"
        for path in read
        for number, phrase in findings(path.read_text())
    ]
    assert found == []
