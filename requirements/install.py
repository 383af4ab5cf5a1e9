"""Install the packages of this folder, checked by hash, into the environment of the Python that runs this.

Usage: python requirements/install.py [--into PYTHON] [--torch cpu|cuda] [--check] SET...
    SET: build, steps, dev or compose

Every file that pip takes must have one of the hashes written here, wherever it comes from, and no other package comes
along (--no-deps; --check sees what is missing). Wheels first: nothing of theirs is run by installing them. Then the few
packages that are published as sources only, built with what is installed by then.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.12", "3.13")
"""Versions of Python that the files cover."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of builds without CUDA; asked for nothing else, and by itself."""


class Pip:
    """pip, for one environment.

    Args:
        python: the environment's Python; it needs no pip of its own.
    """

    def __init__(self, python: str) -> None:
        elsewhere = [] if python == sys.executable else ["--python", python]
        self._command = [sys.executable, "-m", "pip", *elsewhere, "--disable-pip-version-check"]
        code = "import platform, sys; print(*sys.version_info[:2], platform.machine())"
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        major, minor, self.machine = answer.stdout.split()
        self.version = f"{major}.{minor}"

    def install(self, *options: str, quietly: bool = False) -> bool:
        """Install what the options name, whole and checked; whether that worked."""
        command = [*self._command, "install", "--quiet", "--no-compile", "--no-deps", "--require-hashes", *options]
        return subprocess.run(command, capture_output=quietly, check=False).returncode == 0

    def check(self) -> bool:
        """Whether every installed package finds what it requires."""
        done = subprocess.run([*self._command, "check"], capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout, file=sys.stderr)
        return done.returncode == 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Install the sets in order."""
    parser = argparse.ArgumentParser(prog="python requirements/install.py", description=__doc__.splitlines()[0])
    parser.add_argument("--torch", choices=("cpu", "cuda"), help="build of PyTorch to install (default: none)")
    parser.add_argument(
        "--into", default=sys.executable, metavar="PYTHON", help="Python of another environment to install into"
    )
    parser.add_argument(
        "--check", action="store_true", help="at the end run `pip check`: no package may lack one that it requires"
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help="build, steps, dev or compose")
    flags = parser.parse_args(arguments)
    pip = Pip(flags.into)
    if pip.version not in PYTHONS:
        sys.exit(
            f"install: Python {pip.version} is not among those that the packages are pinned for "
            f"({', '.join(PYTHONS)}): give another: make setup PYTHON=python{PYTHONS[-1]}"
        )
    if unknown := [name for name in flags.sets if not (FOLDER / f"{name}.txt").is_file()]:
        parser.error(f"{', '.join(unknown)}: no such set")
    if flags.torch:
        install_torch(pip, flags.torch)
    if flags.sets:
        install_sets(pip, flags.sets)
    if flags.check and not pip.check():
        sys.exit("install: requirements/ lacks what the lines above name: make lock")


def install_sets(pip: Pip, sets: Sequence[str]) -> None:
    """Install sets of packages: the wheels, then what is built here."""
    wheels = [FOLDER / f"{name}.txt" for name in sets]
    sources = [path for name in sets if (path := FOLDER / f"{name}-source.txt").exists()]
    _want(pip.install("--only-binary", ":all:", *_listed(wheels)), wheels)
    if sources:
        # What is built depends on variables that pip's cache doesn't know of (DS_BUILD_SHM_COMM).
        _want(pip.install("--no-cache-dir", "--no-build-isolation", "--use-pep517", *_listed(sources)), sources)


def install_torch(pip: Pip, build: str) -> None:
    """Install PyTorch: the CPU build from pip's own index or else from PyTorch's, or the ordinary one."""
    cpu, ordinary = FOLDER / "torch-cpu.txt", FOLDER / "torch.txt"
    wheels = ("--only-binary", ":all:")
    if build == "cpu" and pip.machine == "x86_64":
        reason = f"no hash of it is known for Python {pip.version}"
        if f"python_version == '{pip.version}'" in cpu.read_text(encoding="utf-8"):
            if pip.install(*wheels, "--requirement", str(cpu), quietly=True):
                return
            elsewhere = ("--index-url", CPU_INDEX, "--retries", "1", "--timeout", "15")
            if pip.install(*wheels, *elsewhere, "--requirement", str(cpu), quietly=True):
                return
            reason = "neither pip's index nor PyTorch's own gives it"
        print(f"PyTorch's build without CUDA: {reason}: taking the one with CUDA's libraries, 3 GB more", flush=True)
    _want(pip.install(*wheels, "--requirement", str(ordinary)), [ordinary])


def blocks(text: str) -> list[str]:
    """The entries of a requirements file, each with its hashes, without comments."""
    lines = "".join(f"{line}\n" for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return re.findall(r"^\S.*\n(?:[ \t].*\n)*", lines, re.MULTILINE)


def name_of(block: str) -> str:
    """The name of an entry's package."""
    return re.match(r"[A-Za-z0-9._-]+", block)[0].lower()


def _listed(paths: Sequence[Path]) -> list[str]:
    return [word for path in paths for word in ("--requirement", str(path))]


def _want(worked: bool, paths: Sequence[Path]) -> None:
    if not worked:
        names = ", ".join(path.name for path in paths)
        sys.exit(f"install: {names}: pip could not install them (its last lines say why)")


if __name__ == "__main__":
    if importlib.util.find_spec("pip") is None:
        sys.exit(f"install: {sys.executable} has no pip: python3 -m ensurepip, or Debian's python3-venv")
    main()
