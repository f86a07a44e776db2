"""What users of Muster build on keeps its name, and what they send and read keeps its shape.

public-names.json lists both. An addition breaks nothing: `python -m tests.contract.test_public_names`
records it.
A line that disappears from that file is a breaking change, and CHANGELOG.md has to say so.
"""

import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from hashlib import sha256
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import hcl2
import pytest
import typer
import yaml

import muster
from functions.shared import errors, settings

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).with_name("public-names.json")
PROSE = {"$comment", "Comment", "description", "summary", "title"}


def python() -> Iterator[str]:
    """The names that `muster` exports, with their public members and parameters."""
    for name in muster.__all__:
        yield from _members(name, getattr(muster, name))


def _members(name: str, thing: Any) -> Iterator[str]:
    yield f"{name}{_parameters(thing)}"
    if is_dataclass(thing):
        yield from (f"{name}.{field.name}" for field in fields(thing) if not field.name.startswith("_"))
    for member, value in inspect.getmembers(thing):
        if member.startswith("_") or member in dir(Exception):
            continue
        yield f"{name}.{member}{_parameters(value) if callable(value) else ''}"


def _parameters(thing: Any) -> str:
    """Names, kinds and whether there is a default: annotations may become more exact."""
    signature = inspect.signature(thing)
    plain = [
        each.replace(
            annotation=inspect.Parameter.empty, default=each.default if _is_plain(each.default) else ...
        )
        for each in signature.parameters.values()
    ]
    return str(inspect.Signature(plain))


def _is_plain(default: object) -> bool:
    return default is inspect.Parameter.empty or isinstance(default, bool | int | float | str | None)


def exceptions() -> Iterator[str]:
    """What the package raises, and the exit code that the command line gives it."""
    for module in pkgutil.walk_packages(muster.__path__, "muster."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    waiting = [muster.MusterError]
    while waiting:
        error = waiting.pop()
        waiting += error.__subclasses__()
        if error.__module__.startswith("muster.") and not error.__name__.startswith("_"):
            yield f"{error.__name__} exits {error.exit_code}"
            for parent in error.__mro__[1 : error.__mro__.index(Exception)]:
                yield f"{error.__name__} is {parent.__name__}"


def commands() -> Iterator[str]:
    """Every command of `muster` with its arguments and options."""
    (script,) = entry_points(group="console_scripts", name="muster")
    assert script.value == "muster.__main__:main"
    for name, command in typer.main.get_command(import_module("muster.cli").app).commands.items():  # type: ignore[attr-defined]
        yield f"{name}"
        for parameter in command.params:
            yield f"{name} {', '.join(parameter.opts + parameter.secondary_opts)}"


def fixtures() -> Iterator[str]:
    """The fixtures and options of the pytest plugin."""
    (plugin,) = entry_points(group="pytest11", name="muster")
    source = inspect.getsource(plugin.load())
    yield from re.findall(r"^def (muster_\w+)", source, re.MULTILINE)
    yield from re.findall(r'"(--muster-\w+)"', source)


def targets() -> Iterator[str]:
    """The targets of the Makefile."""
    yield from re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def terraform() -> Iterator[str]:
    """Inputs, outputs and the addresses of the root module: a new address destroys what the old one named."""
    for path in (ROOT / "terraform").glob("*.tf"):
        document = hcl2.loads(path.read_text())
        for kind in ("variable", "output", "module", "resource"):
            for block in document.get(kind, ()):
                for label, body in block.items():
                    names = body if kind == "resource" else [label]
                    for name in names:
                        if name.startswith("__"):
                            continue
                        address = f"{label}.{name}" if kind == "resource" else name
                        yield f"{kind} {address.replace(chr(34), '')}"


def environment() -> Iterator[str]:
    """The environment variables of each function."""
    for name, kind in inspect.getmembers(settings, is_dataclass):
        if name not in {"Jwt", "Permission"}:
            yield from (f"{name.lower()} {field.name.upper()}" for field in fields(kind))


def replies() -> Iterator[str]:
    """The error codes that a client reads."""
    waiting = [errors.MusterError]
    while waiting:
        error = waiting.pop()
        waiting += error.__subclasses__()
        yield f"{error.code} {error.status} {'closes' if error.closes else 'stays open'}"


def metrics() -> Iterator[str]:
    """The metrics of the namespace Muster, all of which are on the dashboard."""
    yield from re.findall(r'"([A-Z][A-Za-z]+)"', (ROOT / "terraform" / "dashboard.tf").read_text())


def documents() -> Iterator[str]:
    """Schemas, the WebSocket contract and the state machines, without their prose."""
    for folder, pattern in (("schemas", "*.schema.json"), ("schemas", "*.yaml"), ("statemachines", "*.json")):
        for path in (ROOT / folder).glob(pattern):
            content = _without_prose(yaml.safe_load(path.read_text()))
            digest = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            yield f"{folder}/{path.name} {digest[:16]}"


def _without_prose(value: Any) -> Any:
    """Drop descriptions; a property may have the same name, and is an object then."""
    if isinstance(value, dict):
        return {
            key: _without_prose(each)
            for key, each in value.items()
            if not (key in PROSE and isinstance(each, str))
        }
    return [_without_prose(each) for each in value] if isinstance(value, list) else value


SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    each.__name__: each
    for each in (
        python,
        exceptions,
        commands,
        fixtures,
        targets,
        terraform,
        environment,
        replies,
        metrics,
        documents,
    )
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_public_name_is_still_there(section: str) -> None:
    recorded = json.loads(RECORDED.read_text())
    assert recorded[section]
    assert sorted(set(recorded[section]) - set(SECTIONS[section]())) == []


def test_every_section_is_recorded() -> None:
    assert list(json.loads(RECORDED.read_text())) == list(SECTIONS)


if __name__ == "__main__":
    names = {section: sorted(set(find())) for section, find in SECTIONS.items()}
    RECORDED.write_text(json.dumps(names, indent=1, ensure_ascii=False) + "\n")
