"""The modules of the package import each other without a cycle, also inside functions."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "muster").rglob("*.py")
}


def _imports(node: ast.AST) -> Iterator[str]:
    """The modules of the package that a module imports, except for types only."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and node.module:
        for name in node.names:
            yield from {f"{node.module}.{name.name}", node.module} & MODULES.keys()
    if isinstance(node, ast.Import):
        yield from {name.name for name in node.names} & MODULES.keys()
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def test_no_import_leads_back_to_where_it_began() -> None:
    graph = {
        # A package may import its own modules, and they import the package's name only by its path.
        module: {name for name in _imports(ast.parse(path.read_text())) if not module.startswith(name)}
        for module, path in MODULES.items()
    }
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == MODULES.keys()
