"""The examples of the module, in a copy of what a fetched source holds: the checkout stays as it is."""

import shutil
from pathlib import Path

from tests.support import ROOT

EXAMPLES = sorted(path.parent.name for path in ROOT.glob("terraform/examples/*/main.tf"))


def copy_of(example: str, folder: Path) -> Path:
    """Copy the module and what it reads beside it into `folder`; return the example's directory there."""
    not_in_git = shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars*", "*_override.tf*")
    for part in ("terraform", "statemachines"):
        shutil.copytree(ROOT / part, folder / part, ignore=not_in_git)
    return folder / "terraform" / "examples" / example
