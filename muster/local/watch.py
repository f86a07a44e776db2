"""`muster up --watch`: deploys each saved function, schema and state machine to the running stack.

Functions get the rebuilt functions.zip (UpdateFunctionCode), and state machines their definition
(UpdateStateMachine). Terraform renders a definition with `templatefile`. Here the values of its `${name}`
come from the running definition, which has the structure of its template. Other saved files need an apply:
those of Terraform, and functions/requirements.txt, which determines the layer.
"""

from __future__ import annotations

import ast
import json
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from muster.errors import MusterError, StackError
from muster.local import repository
from muster.local.emulator import install_fix
from muster.local.stack import Stack

FOLDERS = ("functions", "schemas", "statemachines", "terraform")

_KEPT = "Correct the file and save it again. The running stack has not changed."
_SUFFIX = ".asl.json"


class Live:
    """The running stack, to which saved files are deployed."""

    def __init__(self, stack: Stack) -> None:
        """Read the variables of the running state machines. The stack must be up."""
        self._stack = stack
        self._root = repository.root().resolve()
        self._variables = self._read_variables()

    def take(self, saved: Iterable[Path]) -> str:
        """Deploy saved files, and return what was done.

        Raises MusterError when a file is wrong. Then the running stack has not changed, unless Terraform
        failed in the middle of an apply.
        """
        names = {(path.parent.resolve() / path.name).relative_to(self._root).as_posix() for path in saved}
        machines = sorted(name for name in names if name.startswith("statemachines/") and self._known(name))
        code = any(_is_code(name) for name in names)
        definitions = {_machine(name): self._render(name) for name in machines}
        if code:
            self._check_code()
        if any(not _is_code(name) and name not in machines for name in names):
            self._stack.up()
            self._variables = self._read_variables()
            return "Terraform applied"
        done = []
        if code:
            self._stack.update_functions()
            done.append("functions")
        for name, definition in definitions.items():
            self._stack.update_machine(name, definition)
            done.append(f"state machine {name}")
        return f"{', '.join(done)} updated"

    def _read_variables(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for name, (template, definition) in self._stack.machines().items():
            found[name] = {}
            read_variables(json.loads(template), json.loads(definition), found[name])
        return found

    def _known(self, name: str) -> bool:
        return name.endswith(_SUFFIX) and _machine(name) in self._variables and (self._root / name).exists()

    def _render(self, name: str) -> str:
        variables = self._variables[_machine(name)]

        def value(match: re.Match[str]) -> str:
            if match[1] not in variables:
                raise StackError(
                    f"{name} uses ${{{match[1]}}}, which terraform/state_machines.tf does not define.",
                    fix=_KEPT,
                )
            return variables[match[1]]

        text = re.sub(r"\$\{([^}]*)\}", value, _text(name, self._root / name))
        _require_json(name, text)
        return text

    def _check_code(self) -> None:
        """Check all files, because the bundle contains those that were saved earlier too."""
        for path in sorted((self._root / "functions").rglob("*.py")):
            name = path.relative_to(self._root).as_posix()
            source = _bytes(name, path)
            try:
                ast.parse(source, name)
            except (SyntaxError, ValueError) as error:
                line = getattr(error, "lineno", None) or 1
                reason = error.msg if isinstance(error, SyntaxError) else str(error)
                raise StackError(f"{name}:{line}: {reason}.", fix=_KEPT) from None
        for path in sorted((self._root / "schemas").glob("*.json")):
            name = path.relative_to(self._root).as_posix()
            _require_json(name, _text(name, path))


def read_variables(template: Any, rendered: Any, found: dict[str, str]) -> None:
    """Put the value of each `${name}` of a template into `found`, by comparing with the rendered strings."""
    if isinstance(template, dict) and isinstance(rendered, dict):
        for key in template.keys() & rendered.keys():
            read_variables(template[key], rendered[key], found)
    elif isinstance(template, list) and isinstance(rendered, list):
        for one, other in zip(template, rendered, strict=False):
            read_variables(one, other, found)
    elif isinstance(template, str) and isinstance(rendered, str):
        literals = re.split(r"\$\{(\w+)\}", template)
        pattern = "".join("(.*?)" if i % 2 else re.escape(part) for i, part in enumerate(literals))
        if match := re.fullmatch(pattern, rendered, re.DOTALL):
            found.update(zip(literals[1::2], match.groups(), strict=True))


def watch(stack: Stack, report: Callable[[str, str | None], None], stop: Event | None = None) -> None:
    """Deploy saved files until `stop` is set. `report` gets each result, and with an error its fix."""
    try:
        from watchfiles import watch as changes_in  # noqa: PLC0415 - only with the `local` extra
    except ImportError:
        raise StackError("--watch needs the package watchfiles.", fix=install_fix("watchfiles")) from None
    live = Live(stack)
    folders = [repository.root().resolve() / name for name in FOLDERS]
    report(
        "Watching functions, schemas, statemachines and terraform. Ctrl-C stops it; the stack stays up.",
        None,
    )
    for changes in changes_in(*folders, watch_filter=_is_source, debounce=200, step=50, stop_event=stop):
        began = time.monotonic()
        try:
            done = live.take({Path(path) for _, path in changes})
        except MusterError as error:
            report(error.message, error.fix or _KEPT)
        except (BotoCoreError, ClientError) as error:
            report(f"The emulator refused the change: {error}", _KEPT)
        except OSError as error:  # a file that vanished, or a full disk
            report(f"The change could not be deployed: {error}.", "Save the file again.")
        else:
            report(f"{done} ({time.monotonic() - began:.1f} s)", None)


def _is_source(_change: object, path: str) -> bool:
    parts = Path(path).relative_to(repository.root().resolve()).parts
    name = parts[-1]
    if parts[0] == "terraform":
        return name.endswith(".tf") and parts[1] not in ("tests", "examples")
    return name.endswith((".py", ".json")) or name == "requirements.txt"


def _is_code(name: str) -> bool:
    return name.startswith(("functions/", "schemas/")) and name.endswith((".py", ".json"))


def _machine(name: str) -> str:
    return Path(name).name.removesuffix(_SUFFIX)


def _bytes(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StackError(f"{name} cannot be read: {error.strerror}.", fix=_KEPT) from None


def _text(name: str, path: Path) -> str:
    try:
        return _bytes(name, path).decode()
    except UnicodeDecodeError as error:
        raise StackError(f"{name} is not UTF-8: {error.reason} at byte {error.start}.", fix=_KEPT) from None


def _require_json(name: str, text: str) -> None:
    try:
        json.loads(text)
    except ValueError as error:
        raise StackError(f"{name} is not valid JSON: {error}.", fix=_KEPT) from None
