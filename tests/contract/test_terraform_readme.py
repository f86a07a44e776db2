"""terraform/README.md lists the inputs and outputs, and one provider range is stated everywhere."""

import re
from pathlib import Path

import pytest
import yaml

from tools.terraform_tables import MODULE, README, generated

PROVIDER = "~> 5.100"


def test_tables_are_up_to_date() -> None:
    assert README.read_text() == generated(README.read_text()), "run `make docs`"


def test_a_page_without_markers_is_an_error() -> None:
    with pytest.raises(SystemExit, match="begin inputs"):
        generated("")


def test_provider_range_is_the_same_everywhere() -> None:
    """README.md says why the next major version is excluded."""
    configurations = [path for path in MODULE.rglob("*.tf") if "required_providers" in path.read_text()]
    assert len(configurations) >= 6
    for path in configurations:
        asked = re.findall(r'source\s*=\s*"hashicorp/aws"\s*version\s*=\s*"([^"]*)"', path.read_text())
        assert asked == [PROVIDER], path
    pages = [README, Path(__file__).parents[2] / "README.md", *(MODULE.parent / "docs").glob("*.md")]
    named = [name for page in pages for name in re.findall(r"`hashicorp/aws` `([^`]*)`", page.read_text())]
    assert named
    assert set(named) == {PROVIDER}


def test_dependabot_ignores_the_next_major_version() -> None:
    settings = yaml.safe_load((MODULE.parent / ".github" / "dependabot.yml").read_text())
    (updates,) = (each for each in settings["updates"] if each["package-ecosystem"] == "terraform")
    assert {"dependency-name": "hashicorp/aws", "update-types": ["version-update:semver-major"]} in updates[
        "ignore"
    ]
