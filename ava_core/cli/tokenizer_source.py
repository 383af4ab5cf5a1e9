"""Where the finished tokenizer lies that `tokenizer.from` names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ava_core.cli.chosen_model import CACHE
from ava_core.config.register import REGISTERED


@cache
def find_source(source: str | None, data: Path | None) -> Path | None:
    """The folder or file on this machine, verified where it has a manifest; None if nothing is named.

    Asked once per process: an alias of the registry may move between the digest of what it means and its use.

    Args:
        source: value of `tokenizer.from`.
        data: the folder given with --data, which relative paths count from.

    Raises:
        AvaError: the registry has no such model, or doesn't answer.
        IntegrityError: a file of the folder was changed.
    """
    if source is None:
        return None
    if source.startswith(REGISTERED):
        from ava_core.registry import download_model
        from ava_core.tracking import tracking_uri

        return download_model(source, tracking_uri(), CACHE).folder.absolute()
    from ava_core.runtime import manifest

    path = (data or Path()) / source
    if (path / manifest.NAME).is_file():
        manifest.verify(path)
    return path
