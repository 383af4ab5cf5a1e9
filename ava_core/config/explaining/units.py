"""The unit of a number, where its name or its meaning says one."""

from __future__ import annotations

import re

_ENDINGS = {
    "seconds": "seconds",
    "minutes": "minutes",
    "steps": "steps",
    "tokens": "tokens",
    "percent": "percent",
    "sequences": "sequences",
    "characters": "characters",
}
"""Last words of a setting's name that are its unit."""
_BEGINNINGS = {
    "CPU threads": "threads",
    "Documents shorter": "characters",
    "Documents with a smaller share": "share",
    "Documents with a larger share": "share",
    **{word: word.lower() for word in ("Sequences", "Tokens", "Texts", "Questions", "Prompts", "Items")},
    **{word: word.lower() for word in ("Cores", "Windows", "Beams")},
    **{f"{word} sequences": "sequences" for word in ("Training", "Validation")},
    "Optimiser steps": "steps",
    "Pairs of": "pairs",
    "Steps": "steps",
    "Evaluations": "evaluations",
    "GiB": "GiB",
    "Share": "share",
    "Seconds": "seconds",
    "Standard deviations": "standard deviations",
    "Weights that share": "weights",
}
"""First words of a meaning that tell what is counted."""
_INSIDE = re.compile(r"\b(?:in|so many) (tokens|bytes|seconds|minutes|GiB|nats per token)\b")


def unit_of(name: str, meaning: str) -> str:
    """The unit of a number, as a plural; empty where nothing says one.

    Args:
        name: the last part of its key.
        meaning: what it means.
    """
    for words, unit in _BEGINNINGS.items():
        if re.match(rf"{words}\b", meaning):
            return unit
    if found := _INSIDE.search(meaning):
        return found[1]
    return _ENDINGS.get(name.rpartition("_")[2], "")
