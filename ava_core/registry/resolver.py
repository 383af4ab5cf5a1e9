"""What a registered model's address means at the moment, for a server that polls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ava_core.registry.download import download_model, find_version
from ava_core.serving.models import Source
from ava_core.tracking.faults import Unreachable


def make_resolver(model: str, weights: str, tracking_uri: str, cache: Path) -> Callable[[], Source]:
    """A function that resolves the address anew at each call; a version that it gave last isn't fetched again.

    While no registry answers from the first call on, it gives the version that the address meant when one last did.

    Args:
        model: models:/NAME@ALIAS or models:/NAME/VERSION.
        weights: name of a scheme, or auto for the smallest that the version has.
        tracking_uri: address of the registry.
        cache: folder for downloads.
    """

    last: Source | None = None
    away = False

    def resolve() -> Source:
        nonlocal last, away
        if last is not None:
            try:
                version = find_version(model, tracking_uri)
            except Unreachable:
                if away:
                    return last  # the warning was logged by the first call
                raise
            away = False
            if last.version == str(version):
                return last
        found = download_model(model, tracking_uri, cache, weights)
        last, away = Source(str(found.version), found.folder, found.created), found.remembered
        return last

    return resolve
