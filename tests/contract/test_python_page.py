"""docs/python.md mentions every name that muster exports, and every type of muster.types."""

import inspect
import re
from pathlib import Path

import pytest

import muster
from muster import types

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
CODE = " ".join(re.findall(r"`([^`\n]+)`", PAGE))


def mentioned(name: str) -> bool:
    return re.search(rf"\b{name}\b", CODE) is not None


@pytest.mark.parametrize("name", muster.__all__)
def test_the_page_mentions_each_exported_name(name: str) -> None:
    assert mentioned(name)


@pytest.mark.parametrize("name", ["Broadcaster", "Client"])
def test_the_page_mentions_each_public_method(name: str) -> None:
    members = [
        member for member, _ in inspect.getmembers(getattr(muster, name)) if not member.startswith("_")
    ]
    assert [member for member in members if not mentioned(member)] == []


def test_the_page_mentions_each_type_of_a_schema() -> None:
    parts = {"FaultEntry", "PartitionEntry"}
    names = [name for name, kind in vars(types).items() if hasattr(kind, "__required_keys__")]
    assert [name for name in names if not mentioned(name) and name not in parts] == []
