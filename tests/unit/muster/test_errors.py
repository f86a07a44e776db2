"""The exceptions of the package: one tree, drawn in muster/errors.py, exported from muster."""

import builtins
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import muster
from muster import errors
from muster.errors import MusterError


def _exceptions() -> list[type[MusterError]]:
    for module in pkgutil.walk_packages(muster.__path__, "muster."):
        if not module.name.endswith("__main__"):
            import_module(module.name)

    def descend(error: type[MusterError]) -> Iterator[type[MusterError]]:
        yield error
        for child in error.__subclasses__():
            yield from descend(child)

    return [error for error in descend(MusterError) if error.__module__.startswith("muster.")]


def _drawn() -> dict[str, str | None]:
    """The parent of each exception of the drawing."""
    parents: dict[str, str | None] = {}
    branch: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─").split(" ")[0]
        if line.startswith("    ") and name:
            depth = line.index(name)
            while branch and branch[-1][0] >= depth:
                branch.pop()
            parents[name] = branch[-1][1] if branch else None
            branch.append((depth, name))
    return parents


def test_the_drawing_is_the_tree() -> None:
    tree = {error.__name__: error.__bases__[0].__name__ for error in _exceptions()}
    assert _drawn() == tree | {"MusterError": None}


def test_each_exception_is_exported_and_has_a_name_of_its_own() -> None:
    names = [error.__name__ for error in _exceptions()]
    assert len(names) == len(set(names))
    assert not [name for name in names if hasattr(builtins, name)]
    assert [getattr(muster, error.__name__) for error in _exceptions()] == _exceptions()
    assert set(names) <= set(muster.__all__)


def test_each_exported_name_exists_and_has_one_module() -> None:
    assert sorted(muster.__all__) == sorted(muster._MODULES)
    for name in muster.__all__:
        assert getattr(muster, name).__name__ == name


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import muster, sys; print([m for m in sys.modules if m.startswith(('muster.', 'boto'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
