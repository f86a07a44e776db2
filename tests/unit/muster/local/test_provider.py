"""Where the AWS provider comes from: the order of the sources, and a search that is announced and ends."""

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from muster.errors import TerraformError
from muster.local import provider
from tests.support.fake_terraform import PLATFORM

UNPACKED = f"registry.terraform.io/hashicorp/aws/{{}}/{PLATFORM}/terraform-provider-aws_v{{}}_x5"
PACKED = f"registry.terraform.io/hashicorp/aws/terraform-provider-aws_{{}}_{PLATFORM}.zip"


def make_mirror(folder: Path, version: str = "5.100.0", layout: str = UNPACKED) -> Path:
    path = folder / layout.format(version, version)
    path.parent.mkdir(parents=True)
    path.touch()
    return folder


class Recorder:
    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def detail(self, text: str) -> None:
        pass


class TestSources:
    """The order of the sources, from the last to the first."""

    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A machine without network: its disk is tmp_path/disk, and its usual folder is tmp_path/usual."""
        self.progress = Recorder()
        self.online = False
        self.folder = tmp_path
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        monkeypatch.setattr(provider, "_registry_answers", lambda: self.online)
        monkeypatch.setattr(provider, "implied_mirrors", lambda: [tmp_path / "implied"])
        monkeypatch.setattr(provider, "usual_folders", lambda: [tmp_path / "usual"])
        monkeypatch.setattr(provider, "whole_disk", lambda: [tmp_path / "disk"])

    def find(self, **environment: str) -> dict[str, str]:
        return provider.provider_environment(PLATFORM, environment, self.folder / "cache", self.progress)

    def mirror_of(self, found: Mapping[str, str]) -> str:
        assert list(found) == ["TF_CLI_CONFIG_FILE"]
        text = Path(found["TF_CLI_CONFIG_FILE"]).read_text()
        assert "direct" in text  # other providers still come from the registry
        return text

    def configure(self, text: str) -> Path:
        path = self.folder / "home" / ".terraformrc"
        path.write_text(text)
        return path

    def test_without_any_source_the_error_names_the_fix(self) -> None:
        with pytest.raises(TerraformError, match=r"registry\.terraform\.io does not answer") as caught:
            self.find()
        assert "MUSTER_TERRAFORM_MIRROR" in str(caught.value.fix)

    def test_the_disk_is_the_last_source_and_its_search_is_announced(self) -> None:
        mirror = make_mirror(self.folder / "disk" / 'odd "name"')
        assert str(mirror).replace('"', r"\"") in self.mirror_of(self.find())
        assert self.progress.steps[0] == "Searching this disk for the AWS provider, for 20 s at most"
        assert str(mirror) in self.progress.steps[1]

    def test_a_usual_folder_is_searched_before_the_disk_and_without_announcement(self) -> None:
        make_mirror(self.folder / "disk")
        mirror = make_mirror(self.folder / "usual" / "terraform" / "mirror")
        assert f'"{mirror}"' in self.mirror_of(self.find())
        assert self.progress.steps == []

    def test_musters_own_plugin_cache_comes_before_the_usual_folders(self) -> None:
        make_mirror(self.folder / "usual")
        cache = make_mirror(self.folder / "cache" / "plugins")
        assert f'"{cache}"' in self.mirror_of(self.find())

    @pytest.mark.parametrize("by_variable", [True, False])
    def test_the_users_plugin_cache_comes_before_musters_own(self, by_variable: bool) -> None:
        make_mirror(self.folder / "cache" / "plugins")
        cache = make_mirror(self.folder / "home" / "plugins")
        if by_variable:
            found = self.find(TF_PLUGIN_CACHE_DIR=str(cache))
        else:
            self.configure('plugin_cache_dir = "$HOME/plugins"\n')
            found = self.find()
        assert f'"{cache}"' in self.mirror_of(found)

    def test_the_registry_comes_before_the_caches_and_downloads_are_kept(self) -> None:
        self.online = True
        make_mirror(self.folder / "usual")
        found = self.find(TF_CLI_CONFIG_FILE=str(self.folder / "missing"))
        assert found == {"TF_PLUGIN_CACHE_DIR": str(self.folder / "cache" / "plugins")}
        assert Path(found["TF_PLUGIN_CACHE_DIR"]).is_dir()

    def test_downloads_from_the_registry_go_to_the_users_plugin_cache(self) -> None:
        self.online = True
        self.configure('plugin_cache_dir = "/plugins"\n')
        assert self.find() == {}

    def test_terraform_takes_an_implied_mirror_itself_before_the_registry(self) -> None:
        self.online = True
        make_mirror(self.folder / "implied")
        assert self.find() == {}

    @pytest.mark.parametrize("named", [True, False])
    def test_an_installation_block_of_the_user_is_left_to_terraform(self, named: bool) -> None:
        path = self.configure("provider_installation {\n}\n")
        assert self.find(**({"TF_CLI_CONFIG_FILE": str(path)} if named else {})) == {}

    def test_an_installation_block_in_a_comment_is_none(self) -> None:
        self.configure("# provider_installation {}\n")
        with pytest.raises(TerraformError):
            self.find()

    def test_the_named_mirror_comes_before_everything(self) -> None:
        self.online = True
        self.configure("provider_installation {\n}\n")
        make_mirror(self.folder / "implied")
        mirror = make_mirror(self.folder / "mirror")
        assert f'"{mirror}"' in self.mirror_of(self.find(MUSTER_TERRAFORM_MIRROR=str(mirror)))

    def test_a_named_mirror_without_the_provider_is_an_error_that_names_the_variable(self) -> None:
        with pytest.raises(TerraformError, match=r"MUSTER_TERRAFORM_MIRROR names /nowhere") as caught:
            self.find(MUSTER_TERRAFORM_MIRROR="/nowhere")
        assert "unset the variable" in str(caught.value.fix)

    def test_both_searches_have_a_time_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        limits: list[float] = []

        def search(_platform: str, _roots: Iterable[Path], *, seconds: float) -> None:
            limits.append(seconds)

        monkeypatch.setattr(provider, "find_mirror", search)
        with pytest.raises(TerraformError):
            self.find()
        assert limits == [provider.USUAL_FOLDER_SECONDS, provider.DISK_SECONDS]


class TestFolders:
    @pytest.mark.parametrize(
        ("system", "folder"), [("linux", ".local/share"), ("darwin", "Library/Application Support")]
    )
    def test_implied_mirrors_are_those_of_the_system(
        self, monkeypatch: pytest.MonkeyPatch, system: str, folder: str
    ) -> None:
        monkeypatch.setattr(sys, "platform", system)
        found = [str(path) for path in provider.implied_mirrors()]
        assert found[0] == str(Path.home() / ".terraform.d" / "plugins")
        assert str(Path.home() / folder) in found[1]

    def test_the_disk_search_begins_at_home(self) -> None:
        assert provider.usual_folders()[0] == Path.home() / ".terraform.d"
        assert provider.whole_disk() == [Path.home(), Path("/")]


class TestSearch:
    def find(self, *roots: Path, platform: str = PLATFORM, seconds: float = 30) -> Path | None:
        return provider.find_mirror(platform, roots, seconds=seconds)

    @pytest.mark.parametrize("layout", [UNPACKED, PACKED])
    def test_both_mirror_layouts_are_found_at_any_depth(self, tmp_path: Path, layout: str) -> None:
        mirror = make_mirror(tmp_path / "a" / "b" / "c", layout=layout)
        assert self.find(tmp_path) == mirror

    def test_an_earlier_root_wins_and_the_mirror_nearest_to_it(self, tmp_path: Path) -> None:
        make_mirror(tmp_path / "second")
        make_mirror(tmp_path / "first" / "a" / "deep")
        nearer = make_mirror(tmp_path / "first" / "z")
        assert self.find(tmp_path / "first", tmp_path / "second") == nearer

    @pytest.mark.parametrize("version", ["4.67.0", "5.99.1", "7.0.0"])
    @pytest.mark.parametrize("layout", [UNPACKED, PACKED])
    def test_versions_that_the_module_does_not_accept_are_skipped(
        self, tmp_path: Path, version: str, layout: str
    ) -> None:
        make_mirror(tmp_path / "a", version=version, layout=layout)
        good = make_mirror(tmp_path / "b", version="6.4.0", layout=layout)
        assert self.find(tmp_path) == good

    def test_other_platforms_are_skipped(self, tmp_path: Path) -> None:
        make_mirror(tmp_path)
        assert self.find(tmp_path, platform="darwin_arm64") is None

    def test_links_and_unreadable_or_missing_folders_are_skipped(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to(tmp_path)
        (tmp_path / "closed").mkdir(mode=0o000)
        assert self.find(tmp_path / "missing", tmp_path) is None

    def test_the_search_ends_in_the_middle_of_a_folder_when_its_time_is_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_mirror(tmp_path / "a" / "b" / "c")
        clock = iter(range(100))
        monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
        assert self.find(tmp_path, seconds=3) is None
        assert next(clock) == 4
