"""`metre`: how near an answer's lines are to the ten syllables of blank verse."""

from __future__ import annotations

from collections.abc import Sequence

from ava_core.alignment.rewards.answer import Answer
from ava_core.alignment.rewards.syllables import syllables_of_line

SYLLABLES = 10
"""Of a pentameter. An eleventh, unstressed one is common in the plays, and costs a fifth here."""
TOLERANCE = 5
"""Syllables too many or too few from which a line is worth nothing."""


def reward(answers: Sequence[Answer]) -> list[float]:
    """For each answer the mean over its lines, between 0 and 1; 0 for an empty one."""
    return [metre(answer.text) for answer in answers]


def metre(text: str) -> float:
    """Mean closeness of the lines of a text: 1 at ten syllables, a fifth less for each that it is away.

    Where words have several pronunciations, the count nearest to ten holds. Lines of blanks don't count.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(map(_closeness, lines)) / len(lines) if lines else 0.0


def _closeness(line: str) -> float:
    fewest, most = syllables_of_line(line)
    away = max(fewest - SYLLABLES, SYLLABLES - most, 0)
    return max(0.0, 1.0 - away / TOLERANCE)
