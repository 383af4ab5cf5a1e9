"""A registered model as the server's source, which follows its alias."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ava_core.registry.download import download_model, find_version
from ava_core.serving.models import Source
from ava_core.tracking.faults import Unreachable


def follow(model: str, weights: str, tracking_uri: str, cache: Path) -> Callable[[], Source]:
    """What the address means now, each time it is called; what is known is neither fetched nor verified again.

    While the registry is away from the start on, it is what it last meant.

    Args:
        model: models:/NAME@ALIAS or models:/NAME/VERSION.
        weights: int8, int4, fp32, or auto for the smallest that the version has.
        tracking_uri: address of the registry.
        cache: folder for downloads.
    """

    last: Source | None = None
    away = False

    def look() -> Source:
        nonlocal last, away
        if last is not None:
            try:
                version = find_version(model, tracking_uri)
            except Unreachable:
                if away:
                    return last  # as was said at the start
                raise
            away = False
            if last.version == str(version):
                return last
        found = download_model(model, tracking_uri, cache, weights)
        last, away = Source(str(found.version), found.folder, found.created), found.remembered
        return last

    return look
