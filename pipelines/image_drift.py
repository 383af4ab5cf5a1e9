"""Whether an image runs the code of this checkout: the steps' keys hold a digest of their code."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

REVISION = "org.opencontainers.image.revision"
"""Label of an image with the commit that it was built from, `-dirty` behind it for one with changes."""
CODE = ("ava_core", "configs")


def find_drift(image: str, labels: Mapping[str, str], checkout: Path = Path()) -> str | None:
    """A line about an image that may run other code than this checkout.

    None if it runs the same, if it doesn't say what it was built from, or if this is no checkout of git.
    """
    commit, _, changes = labels.get(REVISION, "").partition("-")
    if not commit or not (checkout / ".git").exists():
        return None
    name = image[:19] if image.startswith("sha256:") else image
    if changes:
        return f"image {name} was built from commit {commit[:12]} with changes, maybe not those that are here{_WAY_OUT}"
    if _is_same(commit, checkout):
        return None
    return (
        f"image {name} was built from commit {commit[:12]}, whose {' or '.join(CODE)} differ from those here{_WAY_OUT}"
    )


_WAY_OUT = ": its steps have other keys than the host's then; `make images` brings it up to date"


def _is_same(commit: str, checkout: Path) -> bool:
    command = ["git", "-C", str(checkout), "diff", "--quiet", commit, "--", *CODE]
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
