"""Whether the code that runs is that of the checkout it seems to be.

An environment holds its own path in every script and in the editable package. Copied with its checkout, it leads to the
original: `.venv/bin/ava` in the copy runs the original's code with the original's packages. `make` mends that
(requirements/environment.py); a command that is started without it must not run the wrong code without a word.
"""

from __future__ import annotations

import filecmp
from pathlib import Path

from ava_core.checkout import checkout as original
from ava_core.errors import AvaError

REPAIR = "run `make setup`"


def refuse_copied_environment(script: str, prefix: str, package: Path) -> None:
    """Refuse to run out of an environment that was copied.

    Args:
        script: the program's path as it was started, `sys.argv[0]`.
        prefix: the environment whose Python runs, `sys.prefix`.
        package: the folder of the package `ava_core` that was imported.

    Raises:
        AvaError: the script lies in another environment, or the environment in another checkout, than what runs.
    """
    started, running = Path(script).absolute().parent.parent, Path(prefix)
    if (started / "pyvenv.cfg").is_file() and not _same(started, running):
        raise AvaError(f"{started}: is a copy of {running} and would run its code: {REPAIR} in {started.parent}")
    checkout = running.parent
    if _is_checkout(checkout) and not _same(checkout / "ava_core", package) and not package.is_relative_to(running):
        raise AvaError(f"{running}: is a copy and would run the code in {package.parent}: {REPAIR} in {checkout}")


def foreign_checkout(folder: Path, package: Path) -> str | None:
    """A line about code that is not that of the checkout in which the program was started; None if all is well.

    In a copy of the checkout that DVC makes for an experiment, all is well with the checkout's code if it is the same.
    """
    if _is_checkout(folder) and not _same(folder / "ava_core", package):
        if _same(original(folder), package.parent):
            if _same_code(folder / "ava_core", package):
                return None
            return f"runs the code in {package.parent}, which has changed since DVC copied it for this experiment"
        return f"runs the code in {package.parent}, not that in {folder}: {REPAIR} here and use .venv/bin/ava"
    return None


def _same_code(one: Path, other: Path) -> bool:
    """Whether two folders have the same Python files."""
    names = [{path.relative_to(folder) for path in folder.rglob("*.py")} for folder in (one, other)]
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


def _is_checkout(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() and (folder / "ava_core" / "cli" / "main.py").is_file()


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)
