"""Virtual environments of given requirements, linked from the packages of this one: in seconds, and without an index.

Run as a program it stands for the two commands of uv that MLflow gives: `venv FOLDER --python=VERSION`, and
`pip install -r FILE` with $VIRTUAL_ENV.
"""

import os
import platform
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

BUILDERS = ("pip", "setuptools", "wheel")
"""MLflow asks for these in every environment; wheels need none of them."""


def create(folder: Path) -> Path:
    """An empty environment; its interpreter."""
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def install(folder: Path, lines: list[str]) -> None:
    """Link what an installer would take for these requirements, and write its programs."""
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for package in closure(lines):
        for file in package.files or ():
            if ".." in file.parts or "__pycache__" in file.parts:  # programs, and what is compiled anew
                continue
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(package.locate_file(file))
        for program in package.entry_points.select(group="console_scripts"):
            script = folder / "bin" / program.name
            imported = f"from {program.module} import {program.attr.partition('.')[0]}"
            script.write_text(f"#!{folder / 'bin' / 'python'}\n{imported}\n{program.attr}()\n")
            script.chmod(0o755)


def closure(lines: list[str]) -> list[Distribution]:
    """The installed packages that an installer would take for these requirements."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        wanted = waiting.pop()
        key = (wanted.name.lower().replace("_", "-"), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        package = found.setdefault(key[0], distribution(wanted.name))
        assert wanted.specifier.contains(package.version, prereleases=True), f"{wanted}: {package.version} is here"
        for inner in map(Requirement, package.requires or ()):
            extras = wanted.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    return list(found.values())


def read(file: Path) -> list[str]:
    """The requirements of a file and of those that it names."""
    lines = []
    for line in file.read_text().splitlines():
        if line.startswith("-r "):
            lines += read(file.parent / line.removeprefix("-r "))
        elif line and Requirement(line).name not in BUILDERS:
            lines.append(line)
    return lines


def main(*arguments: str) -> None:
    """What uv would do."""
    match arguments:
        case ["venv", folder, version] if version == f"--python={platform.python_version()}":
            create(Path(folder))
        case ["pip", "install", "-r", file]:
            install(Path(os.environ["VIRTUAL_ENV"]), read(Path(file)))
        case _:
            sys.exit(f"linked_environment: {' '.join(arguments)}: isn't known here")


if __name__ == "__main__":
    main(*sys.argv[1:])
