"""The Lambda bundle: its contents, its reproducible bytes, and its cache."""

import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from muster.errors import BundleError
from muster.local import bundle, repository

OWN_RUNTIME = f"python{sys.version_info.major}.{sys.version_info.minor}"


def make_wheel(folder: Path, tag: str, marker: str, version: str = "1.0") -> None:
    """Write a minimal wheel of the package `demo`, with the files that a layer must not contain."""
    info = f"demo-{version}.dist-info"
    files = {
        "demo/__init__.py": f"MARKER = {marker!r}\n",
        "demo/data.json": "{}",
        "demo/tests/test_demo.py": "",
        "demo/typed.pyi": "",
        "cffi/__init__.py": "",
        "_cffi_backend.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: demo\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/entry_points.txt": "[console_scripts]\ndemo = demo:MARKER\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"demo-{version}-{tag}.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only source of packages for pip, so that no test uses the network."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    for name, text in {
        "functions/__init__.py": "",
        "functions/deliver.py": "def handler(event, context): ...\n",
        "functions/shared/posting/gateway.py": "",
        "functions/__pycache__/deliver.cpython-311.pyc": "compiled",
        "functions/requirements.txt": "demo==1.0\n",
        "schemas/receipt.schema.json": "{}",
        "schemas/examples/receipt.valid.json": "{}",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(repository, "checkout", lambda: root)
    return root


def names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()


def sources(archive: Path) -> list[str]:
    return [name for name in names(archive) if not name.endswith(".pyc")]


def test_functions_archive_contains_code_and_schemas_at_their_repository_paths(
    checkout: Path, wheels: Path, tmp_path: Path
) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    built = bundle.build_local(tmp_path / "out")
    assert sources(built.functions) == [
        "functions/__init__.py",
        "functions/deliver.py",
        "functions/shared/posting/gateway.py",
        "schemas/receipt.schema.json",
    ]


def test_layer_contains_only_files_that_are_used_at_run_time(
    checkout: Path, wheels: Path, tmp_path: Path
) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    built = bundle.build_local(tmp_path / "out")
    assert sources(built.layer) == [
        "python/_cffi_backend.py",
        "python/demo-1.0.dist-info/METADATA",
        "python/demo-1.0.dist-info/WHEEL",
        "python/demo-1.0.dist-info/entry_points.txt",
        "python/demo/__init__.py",
        "python/demo/data.json",
    ]


def test_the_same_sources_give_the_same_bytes_on_any_machine_and_day(
    checkout: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    first = bundle.build(tmp_path / "first", runtime=OWN_RUNTIME)
    other = checkout.rename(tmp_path / "another clone")
    monkeypatch.setattr(repository, "checkout", lambda: other)
    monkeypatch.chdir(other / "schemas")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    for path in other.rglob("*.py"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o755)
    for layer in repository.cache_dir().glob("layer-*.zip"):
        layer.unlink()
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    umask = os.umask(0o077)
    try:
        second = bundle.build(tmp_path / "second", runtime=OWN_RUNTIME)
    finally:
        os.umask(umask)
    assert first.bytecode
    assert second.functions.read_bytes() == first.functions.read_bytes()
    assert second.layer.read_bytes() == first.layer.read_bytes()
    assert second.manifest.read_bytes() == first.manifest.read_bytes()


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_manifest_names_the_target_and_both_archives(
    checkout: Path,
    wheels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: bundle.Architecture,
) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    monkeypatch.setattr(bundle, "compiler", lambda runtime: None)
    built = bundle.build(tmp_path / "out", runtime="python3.12", architecture=architecture)
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (built.functions, built.layer)
    }
    assert json.loads(built.manifest.read_text()) == {
        "runtime": "python3.12",
        "architecture": architecture,
        "bytecode": None,
        "sha256": digests,
    }


def test_every_module_has_bytecode_that_python_uses_without_checking_the_source(
    checkout: Path, wheels: Path, tmp_path: Path
) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    built = bundle.build(tmp_path / "out", runtime=OWN_RUNTIME)
    assert json.loads(built.manifest.read_text())["bytecode"] == built.bytecode == platform.python_version()
    for archive in (built.functions, built.layer):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(tmp_path / "unpacked")
            modules = [name for name in opened.namelist() if name.endswith(".py")]
            for name in modules:
                compiled = opened.read(importlib.util.cache_from_source(name))
                # PEP 552: the interpreter's magic number, then flags: 1 is by hash, unchecked.
                assert compiled[:8] == importlib.util.MAGIC_NUMBER + b"\x01\0\0\0"
    demo = tmp_path / "unpacked/python/demo/__init__.py"
    demo.write_text("MARKER = 'changed in place'\n")
    shown = subprocess.run(
        [sys.executable, "-c", "import demo; print(demo.MARKER)"],
        env={"PYTHONPATH": str(demo.parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "any\n"


def test_code_objects_name_the_file_that_lambda_unpacks(checkout: Path, wheels: Path, tmp_path: Path) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    built = bundle.build(tmp_path / "out", runtime=OWN_RUNTIME)
    for archive, path in (
        (built.functions, "/var/task/functions/deliver.py"),
        (built.layer, "/opt/python/demo/__init__.py"),
    ):
        name = path.removeprefix("/var/task/").removeprefix("/opt/")
        with zipfile.ZipFile(archive) as opened:
            assert path.encode() in opened.read(importlib.util.cache_from_source(name))


def test_bytecode_comes_only_from_the_python_of_the_runtime(
    checkout: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version under the right name, and a shim of pyenv without an interpreter, are skipped."""
    make_wheel(wheels, "py3-none-any", "any")
    other = f"python3.{sys.version_info.minor + 1}"
    path, pyenv = tmp_path / "path", tmp_path / "pyenv"
    for name, script in {
        path / other: f'exec "{sys.executable}" "$@"',
        pyenv / f"versions/{other.removeprefix('python')}.9/bin" / other: "exit 127",
    }.items():
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(f"#!/bin/sh\n{script}\n")
        name.chmod(0o755)
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("PYENV_ROOT", str(pyenv))
    built = bundle.build(tmp_path / "out", runtime=other)
    assert built.bytecode is None
    assert names(built.functions) == sources(built.functions)
    assert names(built.layer) == sources(built.layer)


def test_python_of_the_runtime_is_found_on_the_path_and_in_pyenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interpreter(place: Path, runtime: str, version: str) -> None:
        (place / "bin").mkdir(parents=True)
        script = place / "bin" / runtime
        script.write_text(f"#!/bin/sh\necho CPython False final {version}\n")
        script.chmod(0o755)

    for version in ("3.99.2", "3.99.10"):
        interpreter(tmp_path / "pyenv/versions" / version, "python3.99", version)
    interpreter(tmp_path, "python3.98", "3.98.1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    newest = bundle.compiler("python3.99")
    assert newest
    assert newest.version == "3.99.10"
    on_the_path = bundle.compiler("python3.98")
    assert on_the_path
    assert on_the_path.version == "3.98.1"


def test_changed_source_changes_the_archive(checkout: Path, wheels: Path, tmp_path: Path) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    before = bundle.build_local(tmp_path / "out").functions.read_bytes()
    (checkout / "functions/deliver.py").write_text("def handler(event, context): return {}\n")
    assert bundle.build_local(tmp_path / "out").functions.read_bytes() != before


def test_pip_runs_again_only_when_the_requirements_changed(
    checkout: Path, wheels: Path, tmp_path: Path
) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    bundle.build_local(tmp_path / "out")
    (wheels / "demo-1.0-py3-none-any.whl").unlink()
    bundle.build_local(tmp_path / "elsewhere")

    (checkout / "functions/requirements.txt").write_text("demo==2.0\n")
    with pytest.raises(BundleError):
        bundle.build_local(tmp_path / "out")
    make_wheel(wheels, "py3-none-any", "newer", version="2.0")
    assert "python/demo-2.0.dist-info/METADATA" in names(bundle.build_local(tmp_path / "out").layer)


@pytest.mark.parametrize(
    ("architecture", "tag"),
    [("arm64", "cp313-cp313-manylinux2014_aarch64"), ("x86_64", "cp313-cp313-manylinux_2_28_x86_64")],
)
def test_layer_for_aws_contains_wheels_for_the_target_not_for_this_machine(
    checkout: Path, wheels: Path, tmp_path: Path, architecture: bundle.Architecture, tag: str
) -> None:
    make_wheel(wheels, tag, marker=tag)
    make_wheel(wheels, "cp313-cp313-win_amd64", marker="wrong")
    built = bundle.build(tmp_path / "out", runtime="python3.13", architecture=architecture)
    with zipfile.ZipFile(built.layer) as layer:
        assert tag in layer.read("python/demo/__init__.py").decode()


def test_older_runtime_refuses_wheels_that_need_a_newer_glibc(
    checkout: Path, wheels: Path, tmp_path: Path
) -> None:
    make_wheel(wheels, "cp311-cp311-manylinux_2_28_x86_64", marker="needs Amazon Linux 2023")
    with pytest.raises(BundleError, match=r"demo==1\.0") as caught:
        bundle.build(tmp_path / "out", runtime="python3.11", architecture="x86_64")
    assert caught.value.fix is not None
    assert "wheel" in caught.value.fix


@pytest.mark.parametrize("runtime", ["nodejs22.x", "python2.7", "python3", "3.13", "python3.x"])
def test_unknown_runtime_is_refused(checkout: Path, tmp_path: Path, runtime: str) -> None:
    with pytest.raises(BundleError, match="not a Python runtime"):
        bundle.build(tmp_path / "out", runtime=runtime)


def test_every_requirement_of_the_functions_is_pinned() -> None:
    requirements = (repository.root() / "functions/requirements.txt").read_text().splitlines()
    packages = [line for line in requirements if line and not line.startswith("#")]
    assert packages
    assert all(line.count("==") == 1 for line in packages)


IMPORT_FROM_THE_LAYER = """
import sys
from functions import accept, connect, default, deliver, disconnect, offline
from functions.shared.validation import validate
from cryptography.hazmat.primitives.asymmetric import ec, rsa
import jwt

validate("client-ping", {"action": "ping"})
for algorithm, key in {
    "HS256": "a secret of some thirty-two bytes and more",
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
}.items():
    token = jwt.encode({"sub": "u1"}, key, algorithm)
    public = key if algorithm == "HS256" else key.public_key()
    assert jwt.decode(token, public, algorithms=[algorithm]) == {"sub": "u1"}

layer = sys.argv[1]
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None) or ""
    if path.startswith(layer):
        print(path.removeprefix(layer).lstrip("/").split("/")[0])
"""


@pytest.mark.slow  # pip installs the whole layer
def test_functions_import_every_package_of_the_layer_and_run_on_it(tmp_path: Path) -> None:
    """With this repository's requirements: the layer contains only packages that are imported."""
    built = bundle.build_local(tmp_path / "out")
    for archive, folder in ((built.functions, "task"), (built.layer, "opt")):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(tmp_path / folder)
    layer = tmp_path / "opt" / "python"
    search = os.pathsep.join(map(str, (tmp_path / "task", layer)))
    ran = subprocess.run(
        [sys.executable, "-B", "-c", IMPORT_FROM_THE_LAYER, layer],
        env={"PYTHONPATH": search},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    packages = {path.name for path in layer.iterdir() if not path.name.endswith(".dist-info")}
    assert packages - {"__pycache__"} == set(ran.stdout.split())
