"""Python, and the packages against what pyproject.toml asks for and requirements/ pins."""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import ava_core
from ava_core.diagnosis.finding import Finding, fail, ok, warn

PACKAGE = "ava-moe"
PINS = Path(ava_core.__file__).parents[1] / "requirements"
"""In a checkout; a wheel has none."""
OLDEST, NEWEST = (3, 11), (3, 13)
NEEDED, OPTIONAL = ("steps", "steps-source"), ("dev", "dev-source")
TORCH = ("torch-cpu", "torch")
"""One of them is installed."""
TOLD = 4
"""Packages that are named; the others are counted."""
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?:\s*;\s*(.*?))?\s*\\?$", re.MULTILINE)
SETUP = "run `make setup`"


def check_python(version: Sequence[int] | None = None) -> Iterator[Finding]:
    """The version of Python, and the headers that compiled layers need.

    Args:
        version: None: that of this process.
    """
    version = sys.version_info[:3] if version is None else version
    text = ".".join(map(str, version[:3]))
    found = tuple(version[:2])
    span = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if found < OLDEST:
        yield fail("python", text, f"Ava needs {span}: make setup PYTHON=python{OLDEST[0]}.{OLDEST[1]}")
    elif found > NEWEST:
        yield warn("python", text, f"packages are pinned for {span}: make setup PYTHON=python{NEWEST[0]}.{NEWEST[1]}")
    else:
        yield ok("python", f"{text}, {'in a' if sys.prefix != sys.base_prefix else 'in no'} virtual environment")
    if not (headers := Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        yield warn("python headers", f"{headers.name} isn't there", "needed by train.compile: apt install python3-dev")


def check_packages(
    found: Mapping[str, str] | None = None, required: Sequence[str] | None = None, pins: Path = PINS
) -> Iterator[Finding]:
    """The packages that are there, against what Ava asks for and what was tested.

    Args:
        found: version by normalised name; None: those of this environment.
        required: requirements as pyproject.toml has them; None: those of the installed Ava.
        pins: folder of requirements files.
    """
    found = installed_versions() if found is None else found
    required = _required() if required is None else required
    wrong = list(_outside(found, required))
    if wrong:
        yield fail("packages", _some(wrong), SETUP)
        return
    other = list(_unpinned(found, pins)) if pins.is_dir() else []
    if other:
        yield warn("packages", f"other than requirements/ pins: {_some(other)}", SETUP)
        return
    torch = f", torch {found['torch']}" if "torch" in found else ""
    against = "as requirements/ pins" if pins.is_dir() else "as Ava asks for"
    yield ok("packages", f"{len(found)}, {against}{torch}")


def installed_versions() -> dict[str, str]:
    """Version of each package of this environment by normalised name; of two the one that is imported."""
    found: dict[str, str] = {}
    for package in metadata.distributions():
        if name := package.metadata["Name"]:
            found.setdefault(normalized(name), package.version)
    return found


def normalized(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _required() -> list[str]:
    try:
        return metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from its folder, without being installed
        return []


def _outside(found: Mapping[str, str], required: Sequence[str]) -> Iterator[str]:
    from packaging.requirements import Requirement

    for text in required:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = found.get(normalized(wanted.name))
        if version is None:
            yield f"{wanted.name} is missing, Ava needs {wanted.specifier or 'any'}"
        elif not wanted.specifier.contains(version, prereleases=True):
            yield f"{wanted.name} is {version}, Ava needs {wanted.specifier}"


def _unpinned(found: Mapping[str, str], folder: Path) -> Iterator[str]:
    for names in ((*NEEDED,), (*OPTIONAL,)):
        pinned = {name: version for file in names for name, version in read_pins(folder / f"{file}.txt")}
        missing = [name for name in pinned if name not in found]
        if names == OPTIONAL and len(missing) > len(pinned) / 2:
            continue  # an environment of the steps alone
        for name, version in pinned.items():
            if name in found and found[name] != version:
                yield f"{name} is {found[name]}, not {version}"
        yield from (f"{name} is missing" for name in missing)
    builds = {version for file in TORCH for name, version in read_pins(folder / f"{file}.txt") if name == "torch"}
    if builds and found.get("torch") not in builds:
        yield f"torch is {found.get('torch', 'missing')}, not {' or '.join(sorted(builds))}"


def read_pins(path: Path) -> list[tuple[str, str]]:
    """Normalised name and version of each package that a requirements file pins for this Python."""
    from packaging.markers import Marker

    if not path.is_file():
        return []
    entries = _PIN.findall(path.read_text(encoding="utf-8"))
    return [(normalized(name), version) for name, version, marker in entries if not marker or Marker(marker).evaluate()]


def _some(faults: Sequence[str]) -> str:
    more = f" and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
    return ", ".join(faults[:TOLD]) + more
