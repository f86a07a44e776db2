"""Chooses where Terraform gets the AWS provider from.

The first of these that applies wins:

1. the filesystem mirror that MUSTER_TERRAFORM_MIRROR names;
2. the `provider_installation` block of Terraform's CLI configuration, which Terraform applies itself;
3. a folder that Terraform searches itself, such as ~/.terraform.d/plugins (an implied mirror);
4. the public registry, when it answers;
5. a plugin cache: TF_PLUGIN_CACHE_DIR, the one of the CLI configuration, or Muster's own;
6. the folders where people and distributions put plugins;
7. the rest of this disk. This search is announced, and ends after 20 s.

Terraform's rules: https://developer.hashicorp.com/terraform/cli/config/config-file#provider-installation
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

from muster.errors import TerraformError
from muster.progress import Progress

MIRROR_VARIABLE = "MUSTER_TERRAFORM_MIRROR"

USUAL_FOLDER_SECONDS = 10.0
DISK_SECONDS = 20.0
"""How long a search may take: of the usual folders together, and of the rest of the disk."""

_HOST = "registry.terraform.io"
_PROVIDER = Path("hashicorp/aws")
_PROVIDER_SINCE, _PROVIDER_BEFORE = (5, 100), (7,)
_REGISTRY = f"https://{_HOST}/.well-known/terraform.json"
_REGISTRY_SECONDS = 5.0

# Relative folders are below the home directory.
_IMPLIED_MIRRORS = (Path(".terraform.d/plugins"),)
_IMPLIED_MIRRORS_ON_LINUX = (
    Path(".local/share/terraform/plugins"),
    Path("/usr/local/share/terraform/plugins"),
    Path("/usr/share/terraform/plugins"),
)
_IMPLIED_MIRRORS_ON_MACOS = (
    Path("Library/Application Support/io.terraform/plugins"),
    Path("/Library/Application Support/io.terraform/plugins"),
)
_USUAL_FOLDERS = (
    Path(".terraform.d"),
    Path(".local/share/terraform"),
    Path("Library/Application Support/io.terraform"),
    Path("/opt"),
    Path("/usr/local"),
    Path("/usr/share"),
    Path("/usr/lib"),
    Path("/var/lib"),
)

_NOT_SEARCHED = {Path("/proc"), Path("/sys"), Path("/dev"), Path("/run"), Path("/System"), Path("/Volumes")}
_NOT_SEARCHED_NAMES = {"node_modules", "site-packages", "__pycache__", ".git"}
_LOCAL_FILESYSTEMS = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}


def provider_environment(
    platform: str, environment: Mapping[str, str], cache: Path, progress: Progress
) -> dict[str, str]:
    """Return the variables that make Terraform find the AWS provider, in the order of the module's docstring.

    The result is empty when Terraform finds the provider without help. `platform` is Terraform's name for it,
    such as "linux_amd64". `cache` is a folder for downloaded providers and for the CLI configuration that
    names a mirror. Raises TerraformError when MUSTER_TERRAFORM_MIRROR names a folder without the provider, or
    when no source is found.
    """
    if named := environment.get(MIRROR_VARIABLE):
        mirror = Path(named).expanduser()
        if not contains_provider(mirror, platform):
            raise TerraformError(
                f"{MIRROR_VARIABLE} names {named}, which contains no AWS provider for {platform}.",
                fix=f"Name the folder that contains {_HOST}/{_PROVIDER}/..., or unset the variable.",
            )
        return _mirror_configuration(mirror, cache)
    configuration = _cli_configuration(environment)
    if re.search(r"^\s*provider_installation\s*\{", configuration, re.MULTILINE):
        return {}
    if any(contains_provider(folder, platform) for folder in implied_mirrors()):
        return {}
    users_cache = _plugin_cache(environment, configuration)
    own_cache = cache / "plugins"
    if _registry_answers():
        if users_cache:
            return {}
        own_cache.mkdir(parents=True, exist_ok=True)
        return {"TF_PLUGIN_CACHE_DIR": str(own_cache)}
    caches = [users_cache, own_cache] if users_cache else [own_cache]
    for folder in caches:
        if contains_provider(folder, platform):
            return _mirror_configuration(folder, cache)
    if found := _search(platform, progress):
        return _mirror_configuration(found, cache)
    raise TerraformError(
        f"No AWS provider for {platform} was found: {_HOST} does not answer, and no copy is on this disk.",
        fix=f"Go online, or set {MIRROR_VARIABLE} to a folder made by `terraform providers mirror`.",
    )


def contains_provider(mirror: Path, platform: str) -> bool:
    """Return whether a folder is a filesystem mirror, packed or unpacked, with a usable AWS provider."""
    provider = mirror / _HOST / _PROVIDER
    unpacked = provider.glob(f"*/{platform}/terraform-provider-aws*")
    packed = provider.glob(f"terraform-provider-aws_*_{platform}.zip")
    versions = [path.parents[1].name for path in unpacked] + [path.name.split("_")[1] for path in packed]
    return any(_PROVIDER_SINCE <= numbers(version) < _PROVIDER_BEFORE for version in versions)


def implied_mirrors() -> list[Path]:
    """Return the folders in which Terraform looks for providers before it asks the registry."""
    system = _IMPLIED_MIRRORS_ON_MACOS if sys.platform == "darwin" else _IMPLIED_MIRRORS_ON_LINUX
    return [Path.home() / folder for folder in _IMPLIED_MIRRORS + system]


def usual_folders() -> list[Path]:
    """Return the folders where people and distributions put plugins, likeliest first."""
    return [Path.home() / folder for folder in _USUAL_FOLDERS]


def whole_disk() -> list[Path]:
    """Return where the search goes when the usual folders contain no mirror."""
    return [Path.home(), Path("/")]


def _search(platform: str, progress: Progress) -> Path | None:
    """Search the usual folders, then the disk, which is announced because it may take long."""
    if found := find_mirror(platform, usual_folders(), seconds=USUAL_FOLDER_SECONDS):
        return found
    progress.step(f"Searching this disk for the AWS provider, for {DISK_SECONDS:.0f} s at most")
    found = find_mirror(platform, whole_disk(), seconds=DISK_SECONDS)
    if found:
        progress.step(f"Using the AWS provider in {found}: set {MIRROR_VARIABLE} to skip the search")
    return found


def find_mirror(platform: str, roots: Iterable[Path], *, seconds: float) -> Path | None:
    """Search `roots` in order, each level by level, for at most `seconds`; return the first mirror, or None.

    The search does not follow links, and skips network file systems, /proc and the like.
    """
    deadline = time.monotonic() + seconds
    foreign = _foreign_mounts()
    seen: set[Path] = set()
    for root in roots:
        queue = deque([root])
        while queue and time.monotonic() < deadline:
            directory = queue.popleft()
            if directory in seen or directory in foreign or directory in _NOT_SEARCHED:
                continue
            seen.add(directory)
            names = _subdirectories(directory)
            if _HOST in names and contains_provider(directory, platform):
                return directory
            queue.extend(directory / name for name in names if name not in _NOT_SEARCHED_NAMES)
    return None


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of "1.11.4"; "6.0.0-beta1" gives those of 6.0.0."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0]))


def _mirror_configuration(mirror: Path, cache: Path) -> dict[str, str]:
    """Write a CLI configuration that takes the AWS provider from `mirror`, and other providers as usual."""
    name, directory = json.dumps(f"{_HOST}/{_PROVIDER}"), json.dumps(str(mirror.resolve()))
    path = cache / "mirror.tfrc"
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(
        "provider_installation {\n"
        f"  filesystem_mirror {{\n    path    = {directory}\n    include = [{name}]\n  }}\n"
        f"  direct {{\n    exclude = [{name}]\n  }}\n"
        "}\n"
    )
    partial.replace(path)
    return {"TF_CLI_CONFIG_FILE": str(path)}


def _cli_configuration(environment: Mapping[str, str]) -> str:
    """Return the text of the named CLI configuration, or of ~/.terraformrc; empty without one."""
    path = Path(environment.get("TF_CLI_CONFIG_FILE") or Path.home() / ".terraformrc")
    try:
        return path.read_text()
    except OSError:
        return ""


def _plugin_cache(environment: Mapping[str, str], configuration: str) -> Path | None:
    """Return the user's plugin cache. The variable overrides the configuration, as in Terraform."""
    if named := environment.get("TF_PLUGIN_CACHE_DIR"):
        return Path(named)
    setting = re.search(r'^\s*plugin_cache_dir\s*=\s*"([^"]+)"', configuration, re.MULTILINE)
    return Path(os.path.expandvars(setting[1])).expanduser() if setting else None


def _registry_answers() -> bool:
    try:
        with urllib.request.urlopen(_REGISTRY, timeout=_REGISTRY_SECONDS) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, HTTPException):
        return False


def _subdirectories(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _foreign_mounts() -> set[Path]:
    """Return the mount points of file systems that are not on a local disk, where the system lists them."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return set()
    return {Path(mount[1]) for mount in mounts if mount[2] not in _LOCAL_FILESYSTEMS} - {Path("/")}
