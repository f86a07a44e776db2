"""Where the sources, caches and state are, in a checkout and for an installed package."""

import sys
from pathlib import Path

import pytest

from muster.errors import MusterError
from muster.local import repository

ROOT = Path(__file__).parents[4]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package that does not contain the sources yet."""
    package = tmp_path / "site-packages" / "muster"
    package.mkdir(parents=True)
    monkeypatch.setattr(repository, "_PACKAGE", package)
    monkeypatch.delenv("MUSTER_STATE_DIR", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return package


def test_a_checkout_is_used_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSTER_STATE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert (repository.root(), repository.checkout()) == (ROOT, ROOT)
    assert repository.cache_dir() == ROOT / "build" / "cache"
    assert repository.default_state_dir() == ROOT / ".muster"


def test_an_installed_package_uses_the_sources_inside_it(package: Path) -> None:
    (package / "_sources").mkdir()
    assert repository.root() == package / "_sources"
    assert repository.checkout() is None
    assert repository.default_state_dir() == Path.cwd() / ".muster"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other places")
def test_an_installed_package_keeps_caches_in_the_users_cache_folder(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert repository.cache_dir() == Path("/home/ada/.cache/muster")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/ada")
    assert repository.cache_dir() == Path("/var/cache/ada/muster")


def test_a_package_without_sources_says_so(package: Path) -> None:
    with pytest.raises(MusterError, match="does not contain Muster's sources") as caught:
        repository.root()
    assert "Install it again" in str(caught.value.fix)
