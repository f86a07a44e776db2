"""Where the stack's sources are, and the places derived from that.

The sources are functions/, schemas/, statemachines/ and terraform/. In a checkout, and so for an editable
install, they are beside this package; an installed wheel has copies of them inside.
"""

import os
from pathlib import Path

from muster.errors import MusterError

_PACKAGE = Path(__file__).parents[1]
_SHIPPED = "_sources"


def root() -> Path:
    """Return the folder that holds the sources. Nothing may be written there unless it is a checkout."""
    shipped = _PACKAGE / _SHIPPED
    if shipped.is_dir():
        return shipped
    if found := checkout():
        return found
    raise MusterError(
        f"The package in {_PACKAGE} lacks Muster's sources (functions/ and terraform/).",
        fix="Install it again from a wheel or a clone of the repository.",
    )


def checkout() -> Path | None:
    """Return the checkout that this package runs from; None for an installed wheel."""
    parent = _PACKAGE.parent
    return parent if (parent / "functions").is_dir() and (parent / "terraform").is_dir() else None


def cache_dir() -> Path:
    """Return the directory for what may be kept between runs: build/cache of the checkout, or the user's.

    The user's is ~/.cache/muster, or what XDG_CACHE_HOME says; ~/Library/Caches/muster on macOS.
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
