"""The examples of the module: each is valid, and listed for its readers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import EXAMPLES, ROOT, copy_of


@pytest.mark.parametrize("example", EXAMPLES)
def test_is_valid(example: str, tmp_path: Path) -> None:
    """From a folder of its own, as after `terraform init` with a git source."""
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
