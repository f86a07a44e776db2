"""What each function imports at a cold start: CPU milliseconds, and its heaviest packages.

A fresh interpreter each time, with the content of the bundle on its path, and like it without bytecode.
Beside it the same from bytecode, as a machine with the runtime's own Python could ship it, and plain
`import boto3`, which the runtime brings. The least of several runs: what else the machine does only adds.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from functools import reduce
from operator import and_
from pathlib import Path

from rich.console import Console
from rich.table import Table

from muster import bundle, repository

MEASURE = """
import sys, time
started = time.process_time()
__import__(sys.argv[1])
print((time.process_time() - started) * 1000)
"""
HEAVIEST = 4


def cpu_milliseconds(module: str, environment: dict[str, str], runs: int) -> float:
    """CPU time of importing `module` into a fresh interpreter: the least of so many runs."""
    command = [sys.executable, "-c", MEASURE, module]
    return min(
        float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
        for _ in range(runs)
    )


def heaviest(module: str, environment: dict[str, str], runs: int) -> str:
    """The packages that take longest, each without what it imports of others, as `name ms`."""
    own = reduce(and_, (microseconds(module, environment) for _ in range(runs)))  # the least of each
    return ", ".join(f"{name} {count / 1000:.0f}" for name, count in own.most_common(HEAVIEST))


def microseconds(module: str, environment: dict[str, str]) -> Counter[str]:
    """What each package outside the standard library takes by itself, as `-X importtime` reports it."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    report = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    own: Counter[str] = Counter()
    for line in report.splitlines()[1:]:
        alone, _, name = (part.strip() for part in line.removeprefix("import time:").split("|"))
        package = name.partition(".")[0]
        if package not in sys.stdlib_module_names:
            own[package] += int(alone)
    return own


def main() -> None:
    """Measure every function and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="fresh interpreters per figure")
    runs = parser.parse_args().runs
    functions = sorted(path.stem for path in (repository.root() / "functions").glob("[a-z]*.py"))
    table = Table("import", "CPU ms", "of boto3", "from bytecode", "heaviest, ms", box=None)
    with tempfile.TemporaryDirectory() as folder:
        built = bundle.build_local(Path(folder) / "bundle")
        for archive, place in ((built.functions, "task"), (built.layer, "opt")):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(Path(folder) / place)
        code, layer = Path(folder) / "task", Path(folder) / "opt" / "python"
        bytecode = {
            "PYTHONPATH": os.pathsep.join(map(str, (code, layer))),
            "LAMBDA_TASK_ROOT": str(code),  # the X-Ray SDK is lighter where it finds itself in Lambda
        }
        source = bytecode | {"PYTHONDONTWRITEBYTECODE": "1"}
        modules = ["boto3", *(f"functions.{name}" for name in functions)]
        from_source = {module: cpu_milliseconds(module, source, runs) for module in modules}
        weights = {module: heaviest(module, source, runs) for module in modules}
        # The first of these runs writes the bytecode that the others read.
        from_bytecode = {module: cpu_milliseconds(module, bytecode, runs + 1) for module in modules}
    for module in modules:
        ratio = from_source[module] / from_source["boto3"]
        table.add_row(
            module,
            f"{from_source[module]:.0f}",
            f"{ratio:.1f}",
            f"{from_bytecode[module]:.0f}",
            weights[module],
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
