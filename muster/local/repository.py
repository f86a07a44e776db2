"""Finds the stack's sources, and the folders for caches and state.

The sources are functions/, schemas/, statemachines/ and terraform/. In a checkout, also in an editable
install, they are beside this package. An installed wheel contains copies of them.
"""

import os
from pathlib import Path

from muster.errors import MusterError

_PACKAGE = Path(__file__).parents[1]
_SHIPPED = "_sources"


def root() -> Path:
    """Return the folder of the sources. In an installed wheel it is read-only: a part of the package."""
    shipped = _PACKAGE / _SHIPPED
    if shipped.is_dir():
        return shipped
    if found := checkout():
        return found
    raise MusterError(
        f"The package in {_PACKAGE} does not contain Muster's sources (functions/ and terraform/).",
        fix="Install it again from a wheel or a clone of the repository.",
    )


def checkout() -> Path | None:
    """Return the checkout that contains this package; None for an installed wheel."""
    parent = _PACKAGE.parent
    return parent if (parent / "functions").is_dir() and (parent / "terraform").is_dir() else None


def cache_dir() -> Path:
    """Return the folder for caches: build/cache of the checkout, or for an installed wheel the user's.

    The user's is ~/.cache/muster, or below XDG_CACHE_HOME; ~/Library/Caches/muster on macOS.
    """
    if found := checkout():
        return found / "build" / "cache"
    from platformdirs import user_cache_path  # noqa: PLC0415 - only an installed package needs it

    return user_cache_path("muster", appauthor=False)


def default_state_dir() -> Path:
    """Return MUSTER_STATE_DIR, else .muster in the checkout, else .muster in the working directory."""
    if named := os.environ.get("MUSTER_STATE_DIR"):
        return Path(named)
    return (checkout() or Path.cwd()) / ".muster"
