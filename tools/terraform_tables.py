"""Writes the tables of inputs and outputs into terraform/README.md: `python -m tools.terraform_tables`.

They are read from the variable and output blocks of terraform/*.tf. A test holds the page to them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hcl2
from hcl2 import SerializationOptions

MODULE = Path(__file__).parents[1] / "terraform"
README = MODULE / "README.md"

_PLAIN = SerializationOptions(
    strip_string_quotes=True, preserve_heredocs=False, explicit_blocks=False, with_comments=False
)
_LONGEST_DEFAULT = 60


def generated(text: str) -> str:
    """Return the page with what stands between its markers written anew."""
    for name, table in (("inputs", _inputs()), ("outputs", _outputs())):
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(
                f"{README} needs {begin.strip()} and {end.strip()}, once and on lines of their own."
            )
        before, rest = text.split(begin)
        text = before + begin + table + end + rest.split(end)[1]
    return text


def _inputs() -> str:
    rows = ["| name | type | default | |", "|---|---|---|---|"]
    for file, name, block in _blocks("variable"):
        rows.append(
            f"| `{name}` | {_code(_expression(block['type']))} | {_default(file, block)} | {_prose(block)} |"
        )
    return "\n".join(rows) + "\n"


def _outputs() -> str:
    rows = ["| name | |", "|---|---|"]
    rows += [f"| `{name}` | {_prose(block)} |" for _, name, block in _blocks("output")]
    return "\n".join(rows) + "\n"


def _blocks(kind: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The name of the file, the name of the block and the block, for each of a kind."""
    for path in sorted(MODULE.glob("*.tf"), key=_topic):
        with path.open() as file:
            for block in hcl2.load(file, serialization_options=_PLAIN).get(kind, ()):
                yield from ((path.name, name, body) for name, body in block.items())


def _topic(path: Path) -> tuple[bool, str]:
    """variables.tf is first: what every deployment sets."""
    return path.name != "variables.tf", path.name


def _default(file: str, block: Mapping[str, Any]) -> str:
    if "default" not in block:
        return "required"
    default = json.dumps(block["default"])
    return _code(default) if len(default) <= _LONGEST_DEFAULT else f"see [{file}]({file})"


def _expression(text: str) -> str:
    return text.removeprefix("${").removesuffix("}") if text.startswith("${") else text


def _prose(block: Mapping[str, Any]) -> str:
    return re.sub(r"([|<])", r"\\\1", " ".join(block["description"].split()))


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
