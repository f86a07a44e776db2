"""The Lambda bundle: functions.zip (the code and its schemas), layer.zip (its dependencies) and bundle.json.

bundle.json says what the two are for (`runtime`, `architecture`) and which they are (`sha256`), so that
Terraform can refuse a bundle that does not fit.

All are deterministic: the same commit gives the same bytes on every machine, so Terraform sees no change
where there is none. Entries are sorted, stored uncompressed (zlib builds differ), and carry
a fixed time and mode. The layer is kept in a cache, named after everything that decides its content.
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
from pathlib import Path, PurePath
from typing import Literal

from muster import repository
from muster.errors import BundleError

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
# cryptography needs cffi's compiled half only; the other two serve HTTP, and type checkers.
_UNUSED_PACKAGES = {("cffi",), ("aws_lambda_powertools", "event_handler"), ("wrapt-stubs",)}

# Amazon Linux 2 (python3.11) has glibc 2.26; Amazon Linux 2023 (python3.12 and later) has glibc 2.34.
# pip does not expand newer tags to older ones, so the accepted ones are listed.
_GLIBC_TAGS = ("manylinux2014", "manylinux_2_17", "manylinux_2_26")
_GLIBC_TAGS_2023 = (*_GLIBC_TAGS, "manylinux_2_28", "manylinux_2_34")
_MACHINES: dict[Architecture, str] = {"arm64": "aarch64", "x86_64": "x86_64"}


@dataclass(frozen=True)
class Bundle:
    """Where the two archives and their description are."""

    functions: Path
    layer: Path
    manifest: Path


def host_architecture() -> Architecture:
    """Return Lambda's name for this machine's architecture."""
    return "arm64" if platform.machine().lower() in {"arm64", "aarch64"} else "x86_64"


def build(
    out: Path | None = None, *, runtime: str = RUNTIME, architecture: Architecture = ARCHITECTURE
) -> Bundle:
    """Build the bundle for AWS Lambda into `out` (default: build/ of the checkout).

    The layer is made of Linux wheels for `runtime` ("python3.13") and `architecture`, on any machine.
    Raises BundleError when a dependency has no such wheel or pip cannot reach a package index.
    """
    version = re.fullmatch(r"python3\.(\d+)", runtime)
    if version is None:
        raise BundleError(f"{runtime!r} is not a Python runtime.", fix='Name one like "python3.13".')
    tags = _GLIBC_TAGS_2023 if int(version[1]) >= 12 else _GLIBC_TAGS
    platforms = [f"--platform={tag}_{_MACHINES[architecture]}" for tag in tags]
    target = [f"--python-version=3.{version[1]}", "--implementation=cp", *platforms]
    return _build(out or repository.root() / "build", target, runtime, architecture)


def build_local(out: Path) -> Bundle:
    """Build the bundle into `out` for this interpreter and machine, where the embedded stack runs it.

    It calls itself one for the default runtime: the emulator runs every Python runtime with this interpreter.
    """
    return _build(out, [], RUNTIME, host_architecture())


def _build(out: Path, target: list[str], runtime: str, architecture: Architecture) -> Bundle:
    root = repository.root()
    out.mkdir(parents=True, exist_ok=True)
    bundle = Bundle(out / FUNCTIONS, out / LAYER, out / MANIFEST)
    sources = [*(root / "functions").rglob("*.py"), *(root / "schemas").glob("*.schema.json")]
    _write_zip(bundle.functions, {path.relative_to(root).as_posix(): path for path in sources})
    cached = _cached_layer(root, target)
    partial = bundle.layer.with_suffix(f".{os.getpid()}.partial")
    shutil.copyfile(cached, partial)
    partial.replace(bundle.layer)
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (bundle.functions, bundle.layer)
    }
    manifest = {"runtime": runtime, "architecture": architecture, "sha256": digests}
    bundle.manifest.write_text(json.dumps(manifest, indent=2) + "\n")
    return bundle


def _cached_layer(root: Path, target: list[str]) -> Path:
    """Return the layer for these requirements and this target, made by pip unless it was made before."""
    requirements = root / "functions" / "requirements.txt"
    host = [] if target else [sys.version, sysconfig.get_platform()]
    # This module decides which files go in, so it is part of the key.
    key = hashlib.sha256("\n".join([Path(__file__).read_text(), *target, *host]).encode())
    key.update(requirements.read_bytes())
    layer = repository.cache_dir() / f"layer-{key.hexdigest()[:16]}.zip"
    if not layer.exists():
        layer.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="muster-layer-") as folder:
            site = Path(folder)
            _pip_install(requirements, site, target)
            files = {path.relative_to(site): path for path in site.rglob("*") if path.is_file()}
            _write_zip(
                layer, {f"python/{name.as_posix()}": path for name, path in files.items() if _is_needed(name)}
            )
    return layer


def _pip_install(requirements: Path, site: Path, target: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-compile", "--only-binary=:all:", *target]
    command += ["--target", str(site), "--requirement", str(requirements)]
    # A user-wide "pip install --user" setting contradicts --target.
    environment = {**os.environ, "PIP_USER": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise BundleError(
            f"pip could not install {requirements.name}: {' '.join(errors) or done.stderr.strip()}",
            fix="Check that pip reaches a package index and that every version has a wheel for the target.",
        )


def _is_needed(name: PurePath) -> bool:
    """Tell whether a file of the site directory is used at run time; pip's traces also vary by machine."""
    return (
        name.suffix not in _UNUSED_SUFFIXES
        and name.parts[0] != "bin"
        and not any(name.parts[: len(package)] == package for package in _UNUSED_PACKAGES)
        and not _UNUSED_FOLDERS.intersection(name.parts[:-1])
        and not (name.parts[0].endswith(".dist-info") and name.name in _INSTALL_TRACES)
    )


def _write_zip(path: Path, files: Mapping[str, Path]) -> None:
    """Write `files` (name in the archive -> source) to `path`, atomically."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = _UNIX
            entry.external_attr = _REGULAR_FILE
            archive.writestr(entry, files[name].read_bytes())
    partial.replace(path)
