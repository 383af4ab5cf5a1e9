"""The git commit that a result was made at."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def read_commit(folder: Path) -> str | None:
    """The commit checked out in `folder`, 40 or 64 hexadecimal digits; None without git or without a commit."""
    # No shell, fixed arguments; git itself refuses a repository that belongs to someone else (safe.directory).
    command = ["git", "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    commit = answer.stdout.strip()
    return commit if answer.returncode == 0 and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit) else None
