"""The checkout: git, DVC, the settings of this folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from ava_core.config import AvaConfig, resolve
from ava_core.diagnosis.finding import Finding, failed, ok, warn
from ava_core.errors import ConfigError
from ava_core.tracking.commit import read_commit

PARAMS = "params.yaml"
GIT_COMMIT = "AVA_GIT_COMMIT"
GIT_SECONDS = 2.0


def check_git(folder: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """The commit that runs are recorded with."""
    if given := environment.get(GIT_COMMIT):
        yield ok("git", f"commit {given[:12]}, as {GIT_COMMIT} says")
    elif shutil.which("git") is None:
        yield warn("git", "no git", f"runs are recorded without a commit: apt install git, or set {GIT_COMMIT}")
    elif (commit := read_commit(folder)) is None:
        yield warn("git", "no checkout", f"runs are recorded without a commit: use a clone, or set {GIT_COMMIT}")
    else:
        changed = _changed_files(folder)
        yield ok("git", f"commit {commit[:12]}" + (f", {changed} changed files" if changed else ""))


def _changed_files(folder: Path) -> int:
    command = ["git", "-C", str(folder), "--no-optional-locks", "status", "--porcelain", "--untracked-files=no"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(done.stdout.splitlines())


def check_dvc(folder: Path) -> Iterator[Finding]:
    """DVC, for `make repro`."""
    try:
        version = metadata.version("dvc")
    except metadata.PackageNotFoundError:
        yield warn("dvc", "not installed", "only `make repro` and `dvc` need it: run `make setup`")
        return
    if not (folder / ".dvc").is_dir():
        yield warn("dvc", f"{version}, but no .dvc here", "run `dvc init` for `dvc repro`, or go to the checkout")
        return
    inside = Path(sys.prefix) / "bin" / "dvc"
    where = "" if shutil.which("dvc") or not inside.exists() else ", as .venv/bin/dvc"
    yield ok("dvc", f"{version}{where}")


def check_settings(folder: Path) -> Iterator[Finding]:
    """Whether the parameters of this folder are ones."""
    if not (folder / PARAMS).is_file():
        yield warn("settings", f"no {PARAMS} here", "steps then need --params: go to the checkout, or write one")
        return
    try:
        config = read_settings(folder)
    except ConfigError as error:
        yield failed("settings", error)
        return
    yield ok("settings", f"{PARAMS} is valid, preset {config.preset or 'none'}")


def read_settings(folder: Path) -> AvaConfig:
    """The configuration of a folder; the defaults where it has no params.yaml.

    Raises:
        ConfigError: the file is wrong.
    """
    path = folder / PARAMS
    return resolve(params=path if path.is_file() else None).config
