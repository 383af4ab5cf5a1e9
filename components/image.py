"""The image that every component runs in: which one a compiled pipeline names, and whether that name is pinned.

`make images` (pipelines/images, docker/Dockerfile) builds it and writes `build/images.json`, where compiling finds it:
by digest if it was pushed to a registry, else by its id, which this machine's engine knows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ava_core.errors import AvaError

IMAGE = "ava-moe:cpu"
"""What a component names until the pipeline is compiled, and what is left when no image was built."""
RECORD = Path("build/images.json")
"""{target: {"name": tag, "id": "sha256:...", "digest": null or "repository@sha256:..."}}, by `make images`."""
_DIGEST = r"sha256:[0-9a-f]{64}"


def choose(given: str | None = None, *, target: str = "cpu", record: Path = RECORD) -> str:
    """The image to compile with: the one given, else the one that `make images` recorded, else `IMAGE`.

    Args:
        given: from the command line.
        target: which of the recorded images, `cpu` or `gpu`.
        record: file of the recorded images.

    Raises:
        AvaError: the record can't be read.
    """
    if given:
        return given
    try:
        images = json.loads(record.read_text(encoding="utf-8"))
        entry = images.get(target)
        return IMAGE if entry is None else entry["digest"] or entry["id"]
    except FileNotFoundError:
        return IMAGE
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise AvaError(f"{record}: can't be read ({error}): `make images` writes it anew") from error


def warning(image: str) -> str | None:
    """What to know before relying on an image's name, in one line; None for one that is pinned by its digest."""
    if re.search(rf"@{_DIGEST}$", image):
        return None
    if re.fullmatch(_DIGEST, image):
        return (
            f"image {image[:19]} is known to this machine's Docker engine only: for a cluster push it, with"
            " `python -m pipelines.images --push REPOSITORY`"
        )
    return (
        f"image {image} is a moving tag, so the pipeline runs whatever it names by then:"
        " give NAME@sha256:... with --image, or run `make images`"
    )
