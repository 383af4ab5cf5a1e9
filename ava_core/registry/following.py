"""A registered model as the server's source, which follows its alias."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ava_core.registry.download import download_model, find_version
from ava_core.serving.models import Source


def follow(model: str, weights: str, tracking_uri: str, cache: Path) -> Callable[[], Source]:
    """What the address means now, each time it is called; what is known is neither fetched nor verified again.

    Args:
        model: models:/NAME@ALIAS or models:/NAME/VERSION.
        weights: int8, int4, fp32, or auto for the smallest that the version has.
        tracking_uri: address of the registry.
        cache: folder for downloads.
    """

    last: Source | None = None

    def look() -> Source:
        nonlocal last
        if last is None or last.version != str(find_version(model, tracking_uri)):
            found = download_model(model, tracking_uri, cache, weights)
            last = Source(str(found.version), found.folder, found.created)
        return last

    return look
