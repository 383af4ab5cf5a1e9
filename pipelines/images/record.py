"""What was built: `build/images.json`, and the digest of everything that an image is built from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ava_core.files import write_json
from components.image import RECORD

IGNORED = ("__pycache__", ".so")


def read() -> dict[str, dict[str, Any]]:
    """The recorded images by target; none if there is no record that can be read."""
    try:
        images = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return images if isinstance(images, dict) else {}


def write(target: str, entry: Mapping[str, Any]) -> None:
    """Record an image, beside the others."""
    images = {**read(), target: dict(entry)}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    write_json(RECORD, images)


def digest_inputs(root: Path, settings: Mapping[str, str]) -> str:
    """SHA-256 of the build context, as docker/Dockerfile.dockerignore lists its files, and of settings.

    Args:
        root: the checkout.
        settings: what else the result depends on: base, target, labels.
    """
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    listed = (root / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for name in sorted(line.removeprefix("!") for line in listed if line.startswith("!")):
        top = root / name
        for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
            relative = path.relative_to(root)
            if path.suffix in IGNORED or any(part in IGNORED for part in relative.parts):
                continue
            content = path.read_bytes()
            digest.update(f"{relative} {len(content)}\n".encode() + content)
    return digest.hexdigest()
