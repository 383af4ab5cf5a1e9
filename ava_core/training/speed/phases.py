"""Marks of what a step's time goes into, which a profile groups by: free while nothing profiles."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch.profiler import record_function

PREFIX = "ava: "


def marked(phase: str) -> AbstractContextManager[Any]:
    """Within it, a profile counts the time as that of `phase`. Marks inside each other count in both."""
    return record_function(f"{PREFIX}{phase}")
