"""Make `.venv`, or mend the one that is there: `make setup`.

Usage: PYTHON requirements/environment.py      in the checkout, with a Python of the versions that are pinned

Scripts and the editable package of an environment hold the path of their own folder. In a checkout that was moved they
lead nowhere, and in one that was copied they lead to the original and run its code; so the paths are written anew
wherever they name another folder. Packages are installed only if the files that name them have changed.
"""

from __future__ import annotations  # read by Pythons that are too old, to say so

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from install import FOLDER, PYTHONS

STAMP = ".ready"
"""In the environment: the checkout's path, and the digest of what was installed; the Makefile reads the first line."""
PATHS_INSIDE = ("pyvenv.cfg", "bin/*", "lib/python3*/site-packages/*ava_moe*.pth")
PATHS_INSIDE += ("lib/python3*/site-packages/ava_moe-*.dist-info/direct_url.json",)
LONGEST_SHEBANG = 127
"""Bytes of a script's `#!` line that every Linux reads; since 5.1 it is 255."""


def main() -> None:
    """Bring the environment of the current folder up to date."""
    checkout = Path.cwd()
    environment = checkout / ".venv"
    if environment.exists() and not _runs(environment):
        print("make: the Python of .venv is gone: making it anew", flush=True)
        shutil.rmtree(environment)
    if environment.exists() and (before := built_at(environment)) != environment:
        if can_be_mended(environment):
            count = mend(environment, before)
            print(f"make: .venv came from {before.parent}: mended {count} files that named it", flush=True)
        else:
            print(f"make: .venv came from {before.parent}, and this path can't stand in scripts: making it anew")
            shutil.rmtree(environment)
    wanted = digest(checkout)
    if read_stamp(environment) != wanted:
        build(checkout, environment)
    # Replaced, never written to: a copy by hard links would change with it.
    stamp = environment / STAMP
    partial = stamp.with_name(f"{STAMP}.partial")
    partial.write_text(f"{checkout}\n{wanted}\n", encoding="utf-8")
    partial.replace(stamp)


def build(checkout: Path, environment: Path) -> None:
    """Install what is pinned, and the checkout itself as an editable package."""
    python = environment / "bin" / "python"
    if not python.exists():
        create(environment)
    print("make: installing what requirements/ pins into .venv (a few minutes the first time)", flush=True)
    torch = "cuda" if shutil.which("nvidia-smi") else "cpu"
    _run(python, FOLDER / "install.py", "--torch", torch, "build", "steps", "dev")
    offline = ("--quiet", "--no-compile", "--no-deps", "--no-index", "--no-build-isolation")
    _run(python, "-m", "pip", "--disable-pip-version-check", "install", *offline, "--editable", checkout)
    _run(python, FOLDER / "install.py", "--check")
    # pip would compile one file after the other; some packages carry files that are no Python 3.
    subprocess.run([python, "-m", "compileall", "-q", "-j", "0", environment / "lib"], capture_output=True, check=False)


def create(environment: Path) -> None:
    """Make an empty environment with the Python that runs this."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version not in PYTHONS:
        sys.exit(
            f"make: {sys.executable} is Python {version}, and the packages are pinned for {', '.join(PYTHONS)}: "
            f"name one of those: make setup PYTHON=python{PYTHONS[-1]}"
        )
    done = subprocess.run([sys.executable, "-m", "venv", str(environment)], capture_output=True, check=False)
    if done.returncode:
        shutil.rmtree(environment, ignore_errors=True)
        sys.exit(f"make: {sys.executable} has no venv (Debian: apt install python3-venv), or name another: PYTHON=...")


def built_at(environment: Path) -> Path:
    """Where the environment was made, as its configuration says; where it is, if that doesn't say."""
    try:
        configuration = (environment / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return environment
    found = re.search(r"^command = .* -m venv (?:--\S+ )*(/.+)$", configuration, re.MULTILINE)
    return Path(found[1]) if found else environment


def can_be_mended(environment: Path) -> bool:
    """Whether the new path can stand in the first line of a script."""
    shebang = f"#!{environment}/bin/python{PYTHONS[-1]}\n"
    return " " not in shebang and len(os.fsencode(shebang)) <= LONGEST_SHEBANG


def mend(environment: Path, before: Path) -> int:
    """Write the paths of the environment and the checkout where former ones stand; the number of changed files."""
    old, new = os.fsencode(before.parent), os.fsencode(environment.parent)
    named = re.compile(re.escape(old) + rb"(?![\w.-])")  # not the beginning of another folder's name
    count = 0
    for path in [path for pattern in PATHS_INSIDE for path in environment.glob(pattern)]:
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        mended = named.sub(lambda _: new, content)
        if b"\0" in content[:1024] or mended == content:
            continue
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(mended)
        shutil.copymode(path, partial)
        partial.replace(path)
        count += 1
    return count


def digest(checkout: Path) -> str:
    """SHA-256 of everything that says what is installed."""
    total = hashlib.sha256()
    for path in [checkout / "pyproject.toml", checkout / "hatch_build.py", *sorted(FOLDER.glob("*.txt"))]:
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def read_stamp(environment: Path) -> str | None:
    """The digest of what was installed last; None if that did not come to its end."""
    try:
        lines = (environment / STAMP).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return lines[1] if len(lines) == 2 else None


def _runs(environment: Path) -> bool:
    python = environment / "bin" / "python"
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _run(python: Path, *arguments: str | Path) -> None:
    done = subprocess.run([python, *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
