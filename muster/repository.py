"""Where the checkout is: its functions, its Terraform module and the places derived from them."""

import os
from pathlib import Path

from muster.errors import MusterError


def root() -> Path:
    """Return the checkout this package runs from, or the one the working directory is in."""
    for candidate in (Path(__file__).parents[1], Path.cwd(), *Path.cwd().parents):
        if (candidate / "functions").is_dir() and (candidate / "terraform").is_dir():
            return candidate
    raise MusterError(
        "This command needs Muster's sources (functions/ and terraform/), which are not here.",
        fix="Run it inside a clone of the repository.",
    )


def cache_dir() -> Path:
    """Return the directory for what may be kept between runs; `make clean` removes it."""
    return root() / "build" / "cache"


def default_state_dir() -> Path:
    """Return MUSTER_STATE_DIR, else .muster in the checkout, else .muster in the working directory."""
    if named := os.environ.get("MUSTER_STATE_DIR"):
        return Path(named)
    try:
        return root() / ".muster"
    except MusterError:
        return Path.cwd() / ".muster"
