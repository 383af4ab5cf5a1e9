"""The folder whose `.ava` is used: there the local MLflow server keeps its files."""

from __future__ import annotations

from pathlib import Path

DVC_WORKSPACES = (".dvc", "tmp", "exps")
"""Where `dvc exp run --temp` and `dvc queue start` make a copy of the checkout, which they delete afterwards."""


def checkout(folder: Path = Path()) -> Path:
    """The current folder; inside a temporary workspace of DVC's, the checkout that it was made from, which outlives it.

    Args:
        folder: instead of the current one.
    """
    for parent in folder.absolute().parents:
        if parent.parts[-len(DVC_WORKSPACES) :] == DVC_WORKSPACES:
            return parent.parents[len(DVC_WORKSPACES) - 1]
    return folder
