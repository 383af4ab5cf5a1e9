"""`--version`, of `ava` and of every step."""

from __future__ import annotations

from typing import Any

import typer

from ava_core import __version__


def _print_version(asked: bool) -> None:
    if asked:
        print(f"ava {__version__}")
        raise typer.Exit


def version_option() -> Any:
    """The flag, answered before anything else is asked for."""
    return typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
