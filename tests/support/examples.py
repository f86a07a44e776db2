"""The Terraform examples, copied as a module source is, so that tests do not change the checkout."""

import shutil
from pathlib import Path

from tests.support import ROOT

EXAMPLES = sorted(path.parent.name for path in ROOT.glob("terraform/examples/*/main.tf"))


def copy_of(example: str, folder: Path) -> Path:
    """Copy the module and the state machines to `folder`; return the directory of the example there."""
    not_in_git = shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars*", "*_override.tf*")
    for part in ("terraform", "statemachines"):
        shutil.copytree(ROOT / part, folder / part, ignore=not_in_git)
    return folder / "terraform" / "examples" / example
