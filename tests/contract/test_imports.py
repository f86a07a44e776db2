"""Imports go down the layers that docs/architecture.md draws, never up."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

LAYERS = [
    ["bench", "tools", "muster.__main__"],
    ["muster.cli", "muster.pytest_plugin"],
    ["muster.demo", "muster.testing", "muster.verify"],
    ["muster.listeners"],
    ["muster.local"],
    ["muster.broadcaster", "muster.client"],
    ["muster"],  # and the modules directly in it that no layer above names: errors, outputs, progress, ...
    ["functions"],  # the handlers
    ["functions.shared.posting"],
    ["functions.shared"],
]
"""Packages and modules (rooms), highest first. A module imports from its room and from lower layers."""

APART = [("muster", "functions"), ("functions.shared.posting", "functions.shared")]
"""Pairs of rooms: nothing inside the first imports anything inside the second, although that is lower."""

EXCEPTIONS = {
    ("functions.shared.posting", "functions.shared.instants"): "reads a connection's age from its row",
    (
        "muster.outputs",
        "muster.local",
    ): "imported when called: outputs of the local stack or a Terraform folder",
}
"""Imports that the tables forbid, and why: from anything inside the first to anything inside the second."""

LIBRARIES = {
    "functions.shared.posting": {"aws_lambda_powertools", "aws_xray_sdk", "boto3", "botocore"},
    "muster.client": {"boto3", "botocore"},
}
"""Libraries that a room does not import: `bench` runs posting alone, and a client has no AWS account."""

EXPORTS = {"muster"}
"""Modules that import only to export."""


def _modules(*folders: str) -> dict[str, Path]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
        if "_sources" not in path.parts
    }


def _imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, at its top or later; `from a import b` is `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _within(name: str, room: str) -> bool:
    return f"{name}.".startswith(f"{room}.")


def _layer(module: str) -> tuple[int, str]:
    """The layer of a module, counted from the top, and its room: the longest name that it is within."""
    rooms = [
        (len(room), at, room) for at, layer in enumerate(LAYERS) for room in layer if _within(module, room)
    ]
    _, at, room = max(rooms)
    return at, room


def _arrows() -> Iterator[tuple[str, str]]:
    """Every import of one module of the project by another."""
    modules = _modules("functions", "muster", "bench", "tools")
    for module, path in modules.items():
        for name in _imports(path):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module and module not in EXPORTS:
                yield module, name


def _fault(module: str, imported: str) -> str | None:
    if imported in ("functions", "muster"):  # the version, and the public names
        return None
    (own, room), (other, other_room) = _layer(module), _layer(imported)
    if room == other_room:
        return "a handler imports another" if room == "functions" else None
    if other <= own:
        return f"{room} is not above {other_room}"
    kept_apart = [(a, b) for a, b in APART if _within(module, a) and _within(imported, b)]
    return f"{room} must not import {other_room}" if kept_apart else None


def test_no_import_goes_up() -> None:
    faults = {arrow: fault for arrow in _arrows() if (fault := _fault(*arrow))}
    excused = {
        arrow: exception
        for arrow in faults
        for exception in EXCEPTIONS
        if _within(arrow[0], exception[0]) and _within(arrow[1], exception[1])
    }
    assert {arrow: fault for arrow, fault in faults.items() if arrow not in excused} == {}
    assert set(EXCEPTIONS) == set(excused.values()), "an exception is no longer needed"


def test_every_room_exists() -> None:
    modules = _modules("functions", "muster", "bench", "tools")
    rooms = [room for layer in LAYERS for room in layer]
    assert [room for room in rooms if not any(_within(module, room) for module in modules)] == []


@pytest.mark.parametrize("room", LIBRARIES)
def test_a_room_imports_none_of_these_libraries(room: str) -> None:
    paths = [path for module, path in _modules("functions", "muster").items() if _within(module, room)]
    assert paths
    imported = {name.partition(".")[0] for path in paths for name in _imports(path)}
    assert imported & LIBRARIES[room] == set()


def test_the_page_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    paths = {room: room.replace(".", "/") for layer in LAYERS for room in layer if room != "muster.__main__"}
    assert [room for room, path in paths.items() if f"`{path}" not in page] == []


def test_tests_import_helpers_from_support_and_their_own_folder_only() -> None:
    def folder(name: str) -> str:
        return ".".join(name.split(".")[:2])

    arrows = [
        (module, name)
        for module, path in _modules("tests").items()
        for name in _imports(path)
        if _within(name, "tests") and module != "tests"
    ]
    assert arrows
    allowed = {"tests.support"}
    assert [(a, b) for a, b in arrows if folder(b) not in {*allowed, folder(a)}] == []


def test_unit_tests_mirror_the_source() -> None:
    """A test module's folder is that of the module or package that it tests."""
    unit = ROOT / "tests" / "unit"
    folders = {path.parent.relative_to(unit) for path in unit.rglob("test_*.py")}
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []


def test_no_import_leads_back_to_where_it_began() -> None:
    modules = _modules("muster")
    graph = {
        # A package may import its own modules, and they import the package's name only by its path.
        module: {
            name
            for name in _runtime_imports(ast.parse(path.read_text()), modules)
            if not module.startswith(name)
        }
        for module, path in modules.items()
    }
    assert set(TopologicalSorter(graph).static_order()) == modules.keys()


def _runtime_imports(node: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    """The modules that a module imports, also inside functions, except for types only."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and node.module:
        for name in node.names:
            yield from {f"{node.module}.{name.name}", node.module} & modules.keys()
    if isinstance(node, ast.Import):
        yield from {name.name for name in node.names} & modules.keys()
    for child in ast.iter_child_nodes(node):
        yield from _runtime_imports(child, modules)
