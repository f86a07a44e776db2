"""The Lambda bundle: what is in it, the same bytes every time, and no pip run that is not needed."""

import os
import zipfile
from pathlib import Path

import pytest

from muster import bundle, repository
from muster.errors import BundleError


def make_wheel(folder: Path, tag: str, marker: str, version: str = "1.0") -> None:
    """Write a minimal wheel of the package `demo`, with the files that a layer must not hold."""
    info = f"demo-{version}.dist-info"
    files = {
        "demo/__init__.py": f"MARKER = {marker!r}\n",
        "demo/data.json": "{}",
        "demo/tests/test_demo.py": "",
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
    """The only place pip may take packages from, so that no test reaches for the network."""
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
        "functions/shared/gateway.py": "",
        "functions/__pycache__/deliver.cpython-311.pyc": "compiled",
        "functions/requirements.txt": "demo==1.0\n",
        "schemas/receipt.schema.json": "{}",
        "schemas/examples/receipt.valid.json": "{}",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(repository, "root", lambda: root)
    return root


def names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()


def test_functions_archive_holds_code_and_schemas_at_their_repository_paths(
    checkout: Path, wheels: Path, tmp_path: Path
) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    built = bundle.build_local(tmp_path / "out")
    assert names(built.functions) == [
        "functions/__init__.py",
        "functions/deliver.py",
        "functions/shared/gateway.py",
        "schemas/receipt.schema.json",
    ]


def test_layer_holds_what_runs_and_none_of_the_traces_of_installing(
    checkout: Path, wheels: Path, tmp_path: Path
) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    built = bundle.build_local(tmp_path / "out")
    assert names(built.layer) == [
        "python/demo-1.0.dist-info/METADATA",
        "python/demo-1.0.dist-info/WHEEL",
        "python/demo-1.0.dist-info/entry_points.txt",
        "python/demo/__init__.py",
        "python/demo/data.json",
    ]


def test_same_sources_give_same_bytes_whatever_their_times_and_modes(
    checkout: Path, wheels: Path, tmp_path: Path
) -> None:
    make_wheel(wheels, "py3-none-any", "any")
    first = bundle.build_local(tmp_path / "first")
    for path in checkout.rglob("*.py"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o755)
    for layer in repository.cache_dir().glob("layer-*.zip"):
        layer.unlink()
    second = bundle.build_local(tmp_path / "second")
    assert second.functions.read_bytes() == first.functions.read_bytes()
    assert second.layer.read_bytes() == first.layer.read_bytes()


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
def test_layer_for_aws_takes_wheels_of_the_target_not_of_this_machine(
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
