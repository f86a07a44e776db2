"""The Lambda bundle: functions.zip (the code and its schemas), layer.zip (its dependencies) and bundle.json.

bundle.json contains the `runtime`, the `architecture` and the `sha256` of both archives, so that Terraform
can refuse a bundle that does not fit. Its `bytecode` is the version of the Python that compiled the bundle,
such as "3.13.0". Null means that the bundle has no bytecode, and Lambda compiles at each cold start.

The build is reproducible, so Terraform sees a change only where there is one: a commit gives the same bytes
on every machine that has the same Python for the runtime, or none. Entries are sorted, have a fixed time and
mode, and are not compressed, because zlib builds differ. Bytecode contains the hash of its source instead of
its time, and Python does not check it (PEP 552): a source that is changed in place has no effect. The layer
is cached under a name that depends on everything that determines its content.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from muster.errors import BundleError
from muster.local import repository

Architecture = Literal["arm64", "x86_64"]

RUNTIME = "python3.13"
ARCHITECTURE: Architecture = "arm64"

FUNCTIONS = "functions.zip"
LAYER = "layer.zip"
MANIFEST = "bundle.json"

_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_REGULAR_FILE = 0o100644 << 16
_INSTALL_TRACES = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
_UNUSED_FOLDERS = {"__pycache__", "tests", "test", "benchmarks", "sboms"}
_UNUSED_SUFFIXES = {".pyc", ".pyi"}
# cryptography needs only the compiled half of cffi. The others are for HTTP, Datadog and type checkers.
_UNUSED_PACKAGES = {
    ("cffi",),
    ("aws_lambda_powertools", "event_handler"),
    ("aws_lambda_powertools", "metrics", "provider", "datadog"),
    ("wrapt-stubs",),
}
# Packages whose subpackages are independent, and the subpackages that are used. Saves half of the layer's
# files.
_USED_OF: dict[tuple[str, ...], set[str]] = {
    ("aws_lambda_powertools", "utilities"): {"jmespath_utils", "typing"},
    ("aws_xray_sdk", "ext"): {"botocore", "resources"},
}

# Amazon Linux 2 (python3.11) has glibc 2.26; Amazon Linux 2023 (python3.12 and later) has glibc 2.34.
# pip does not expand newer tags to older ones, so the accepted ones are listed.
_GLIBC_TAGS = ("manylinux2014", "manylinux_2_17", "manylinux_2_26")
_GLIBC_TAGS_2023 = (*_GLIBC_TAGS, "manylinux_2_28", "manylinux_2_34")
_MACHINES: dict[Architecture, str] = {"arm64": "aarch64", "x86_64": "x86_64"}


_DESCRIBE = """
import platform, sys, sysconfig
print(platform.python_implementation(), bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
      sys.version_info.releaselevel, platform.python_version())
"""
# Reads [[source, path on Lambda, bytecode file], ...]. Skips a file that does not compile: a package may
# contain one for a newer Python.
_COMPILE = """
import json, py_compile, sys
for source, path, target in json.load(sys.stdin):
    try:
        py_compile.compile(source, target, path, doraise=True, optimize=0,
                           invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except py_compile.PyCompileError:
        pass
"""
_TASK_ROOT = PurePosixPath("/var/task")
_LAYER_ROOT = PurePosixPath("/opt")


@dataclass(frozen=True)
class Bundle:
    """The paths of the archives and of bundle.json; `bytecode` is as in bundle.json."""

    functions: Path
    layer: Path
    manifest: Path
    bytecode: str | None


@dataclass(frozen=True)
class Compiler:
    """A Python interpreter whose bytecode the runtime accepts: its path and its version ("3.13.0")."""

    executable: str
    version: str

    @property
    def tag(self) -> str:
        """The tag in the names of its bytecode files: deliver.cpython-313.pyc."""
        return "cpython-" + "".join(self.version.split(".")[:2])


def host_architecture() -> Architecture:
    """Return Lambda's name for this machine's architecture."""
    return "arm64" if platform.machine().lower() in {"arm64", "aarch64"} else "x86_64"


def build(out: Path, *, runtime: str = RUNTIME, architecture: Architecture = ARCHITECTURE) -> Bundle:
    """Build the bundle for AWS Lambda into `out`.

    The layer is made of Linux wheels for `runtime` ("python3.13") and `architecture`, on any machine.
    Raises BundleError when a dependency has no such wheel or pip cannot reach a package index.
    """
    version = re.fullmatch(r"python3\.(\d+)", runtime)
    if version is None:
        raise BundleError(f"{runtime!r} is not a Python runtime.", fix='Name one, such as "python3.13".')
    tags = _GLIBC_TAGS_2023 if int(version[1]) >= 12 else _GLIBC_TAGS
    platforms = [f"--platform={tag}_{_MACHINES[architecture]}" for tag in tags]
    target = [f"--python-version=3.{version[1]}", "--implementation=cp", *platforms]
    return _build(out, target, runtime, architecture, compiler(runtime))


def compiler(runtime: str) -> Compiler | None:
    """Find the Python of `runtime` ("python3.13"): this one, the one on the PATH, or pyenv's newest."""
    minor = runtime.removeprefix("python")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    installed = sorted(pyenv.glob(f"{minor}.*"), key=lambda path: (len(path.name), path.name), reverse=True)
    candidates = [sys.executable, shutil.which(runtime), *(str(path / "bin" / runtime) for path in installed)]
    for executable in candidates:
        if executable and (version := _release(executable)) and version.startswith(f"{minor}."):
            return Compiler(executable, version)
    return None


def _release(executable: str) -> str | None:
    """Return the version of a released CPython, as on Lambda; None for others, such as a shim of pyenv."""
    try:
        run = subprocess.run(
            [executable, "-I", "-c", _DESCRIBE], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match run.stdout.split():
        case ["CPython", "False", "final", version]:
            return version
    return None


def build_local(out: Path) -> Bundle:
    """Build the bundle for this interpreter and machine into `out`, for the embedded stack.

    Its bundle.json names the default runtime: the emulator runs every Python runtime with this interpreter.
    It contains no bytecode: the emulator unpacks the layer for each environment, and on a slow disk twice the
    files take longer than compiling what a function imports.
    """
    return _build(out, [], RUNTIME, host_architecture(), None)


def _build(
    out: Path, target: list[str], runtime: str, architecture: Architecture, compiler: Compiler | None
) -> Bundle:
    root = repository.root()
    out.mkdir(parents=True, exist_ok=True)
    bytecode = compiler.version if compiler else None
    bundle = Bundle(out / FUNCTIONS, out / LAYER, out / MANIFEST, bytecode)
    sources = [*(root / "functions").rglob("*.py"), *(root / "schemas").glob("*.schema.json")]
    files = {path.relative_to(root).as_posix(): path for path in sources}
    _write_zip(bundle.functions, files, compiler, _TASK_ROOT)
    cached = _cached_layer(root, target, compiler)
    partial = bundle.layer.with_suffix(f".{os.getpid()}.partial")
    shutil.copyfile(cached, partial)
    partial.replace(bundle.layer)
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (bundle.functions, bundle.layer)
    }
    manifest = {
        "runtime": runtime,
        "architecture": architecture,
        "bytecode": bytecode,
        "sha256": digests,
    }
    bundle.manifest.write_text(json.dumps(manifest, indent=2) + "\n")
    return bundle


def _cached_layer(root: Path, target: list[str], compiler: Compiler | None) -> Path:
    """Return the layer for these requirements and this target, from the cache or made by pip."""
    requirements = root / "functions" / "requirements.txt"
    host = [] if target else [sys.version, sysconfig.get_platform()]
    compiled = [f"bytecode {compiler.version}"] if compiler else []
    # This module decides which files go in, so it is part of the key.
    key = hashlib.sha256("\n".join([Path(__file__).read_text(), *target, *host, *compiled]).encode())
    key.update(requirements.read_bytes())
    layer = repository.cache_dir() / f"layer-{key.hexdigest()[:16]}.zip"
    if not layer.exists():
        layer.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="muster-layer-") as folder:
            site = Path(folder)
            _pip_install(requirements, site, target)
            files = {path.relative_to(site): path for path in site.rglob("*") if path.is_file()}
            needed = {f"python/{name.as_posix()}": path for name, path in files.items() if _is_needed(name)}
            _write_zip(layer, needed, compiler, _LAYER_ROOT)
    return layer


def _pip_install(requirements: Path, site: Path, target: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-compile", "--only-binary=:all:", *target]
    command += ["--target", str(site), "--requirement", str(requirements)]
    # A user-wide "pip install --user" setting conflicts with --target.
    environment = {**os.environ, "PIP_USER": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and find_spec("pip") is None:
        raise BundleError(
            f"pip, which installs the functions' dependencies, is not installed for {sys.executable}.",
            fix="python -m ensurepip, or uv pip install pip",
        )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise BundleError(
            f"pip could not install {requirements.name}: {' '.join(errors) or done.stderr.strip()}",
            fix="Check that pip reaches a package index, and that every version has a wheel for the target.",
        )


def _is_needed(name: PurePath) -> bool:
    """Return whether a file of the site directory is used at run time. pip's own files also vary."""
    folders = name.parts[:-1]
    return (
        name.suffix not in _UNUSED_SUFFIXES
        and name.parts[0] != "bin"
        and not any(name.parts[: len(package)] == package for package in _UNUSED_PACKAGES)
        and not any(
            folders[: len(parent)] == parent and not used.issuperset(folders[len(parent) :][:1])
            for parent, used in _USED_OF.items()
        )
        and not _UNUSED_FOLDERS.intersection(folders)
        and not (name.parts[0].endswith(".dist-info") and name.name in _INSTALL_TRACES)
    )


def _write_zip(path: Path, files: Mapping[str, Path], compiler: Compiler | None, root: PurePosixPath) -> None:
    """Write `files` (name in the archive -> source) and their bytecode to `path`, atomically.

    `root` is where Lambda unpacks the archive. Tracebacks find source lines by the path in the bytecode.
    """
    with tempfile.TemporaryDirectory(prefix="muster-bytecode-") as folder:
        contents = dict(files)
        if compiler:
            contents |= _compile(files, compiler, root, Path(folder))
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(contents):
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.create_system = _UNIX
                entry.external_attr = _REGULAR_FILE
                archive.writestr(entry, contents[name].read_bytes())
        partial.replace(path)


def _compile(
    files: Mapping[str, Path], compiler: Compiler, root: PurePosixPath, folder: Path
) -> dict[str, Path]:
    """Compile the Python files of `files` into `folder`; return the results by their name in the archive."""
    modules = sorted(PurePosixPath(name) for name in files if name.endswith(".py"))
    compiled = {
        module: module.parent / "__pycache__" / f"{module.stem}.{compiler.tag}.pyc" for module in modules
    }
    jobs = [
        [str(files[str(module)]), str(root / module), str(folder / name)] for module, name in compiled.items()
    ]
    # Isolated and without site: marshal's output depends on which other modules are imported.
    command = [compiler.executable, "-I", "-S", "-c", _COMPILE]
    run = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=False)
    if run.returncode:
        raise BundleError(f"{compiler.executable} could not compile the bundle: {run.stderr.strip()}")
    return {str(name): folder / name for name in compiled.values() if (folder / name).exists()}
