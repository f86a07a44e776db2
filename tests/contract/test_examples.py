"""Every example of the module is valid and listed in the README of the examples."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonata
import pytest

from functions import __version__
from tests.support import ROOT
from tests.support.examples import EXAMPLES, copy_of


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_is_valid(example: str, tmp_path: Path) -> None:
    """The example is validated in its own folder, as after `terraform init` with a git source."""
    folder = copy_of(example, tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    for arguments in (["init", "-backend=false", "-input=false"], ["validate"]):
        done = subprocess.run(
            [sys.executable, "-m", "muster", "terraform", f"-chdir={folder}", *arguments, "-no-color"],
            cwd=ROOT,
            env=kept,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_readme_lists_every_example() -> None:
    text = (ROOT / "terraform" / "examples" / "README.md").read_text()
    assert sorted(re.findall(r"^\| \[[^]]+\]\((.+)/main\.tf\)", text, re.MULTILINE)) == EXAMPLES


def _pinning_texts() -> dict[Path, str]:
    """Return every page and configuration that a reader may copy from."""
    paths = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(path for kind in ("*.md", "*.tf") for path in (ROOT / "terraform").rglob(kind)),
    ]
    return {
        path: path.read_text()
        for path in paths
        if path.name != "CHANGELOG.md" and ".terraform" not in path.parts
    }


def test_every_pinned_tag_is_the_current_version() -> None:
    pinned = {
        path.relative_to(ROOT): set(
            re.findall(r"(?:\?ref=|clone --branch |switch --detach |curl -A muster/)v?([\w.-]+)", text)
        )
        for path, text in _pinning_texts().items()
    }
    pinned = {path: tags for path, tags in pinned.items() if tags}
    assert len(pinned) >= 8
    assert {path: tags for path, tags in pinned.items() if tags != {__version__}} == {}
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_all_pages_use_one_placeholder_for_the_repository() -> None:
    named = {
        address
        for text in _pinning_texts().values()
        for address in re.findall(r"[\w+-]+://[^\s\"`]*?muster\.git", text)
    }
    assert {address.removeprefix("git::") for address in named} == {"https://example.org/muster.git"}
    clone = f"git clone --branch v{__version__} https://example.org/muster.git"
    assert clone in (ROOT / "docs" / "deploy.md").read_text()


def _changed_person(state: str, argument: str, record: dict[str, Any]) -> Any:
    """Return what a state of the example's state machine sends to DynamoDB for a record of the stream."""
    text = (ROOT / "terraform" / "examples" / "users-by-another-key" / "users.asl.json").read_text()
    states = json.loads(text)["States"]["EachChange"]["ItemProcessor"]["States"]
    expression = states[state]["Arguments"][argument].removeprefix("{%").removesuffix("%}")
    return jsonata.Jsonata.jsonata(expression).evaluate(None, {"states": {"input": record}})


@pytest.mark.parametrize(
    ("image", "row"),
    [
        (
            {"mail": {"S": "a@example.org"}, "duty": {"S": "admin"}, "site": {"S": "north"}},
            {
                "email": {"S": "a@example.org"},
                "role": {"S": "admin"},
                "shelterId": {"S": "north"},
                "active": {"BOOL": True},
            },
        ),
        (
            {"duty": {"S": "admin"}, "leftOn": {"S": "2026-11-25"}},
            {"role": {"S": "admin"}, "active": {"BOOL": False}},
        ),
        ({}, {"active": {"BOOL": True}}),  # without a role, `connect` refuses the user
    ],
)
def test_users_by_another_key_copies_a_person(image: dict[str, Any], row: dict[str, Any]) -> None:
    record = {"eventName": "MODIFY", "dynamodb": {"NewImage": {"personId": {"S": "p-1"}, **image}}}
    assert _changed_person("Put", "Item", record) == {"userId": {"S": "p-1"}, **row}


def test_users_by_another_key_deletes_a_removed_person() -> None:
    record = {"eventName": "REMOVE", "dynamodb": {"Keys": {"personId": {"S": "p-1"}}}}
    assert _changed_person("Delete", "Key", record) == {"userId": {"S": "p-1"}}
