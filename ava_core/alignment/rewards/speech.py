"""`speech`: whether an answer is one whole speech: of one person, without stage directions, ended, not repeating."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ava_core.alignment.rewards.answer import Answer

GRAM = 4
"""Words in a run of which the different ones are counted."""
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
HEADING = re.compile(
    r"^\s*(?:[A-Z][a-z'\u2019]+(?: [A-Z][a-z'\u2019]+)?:\s*$"
    r"|(?=[^a-z\n]*[A-Z]{2})[^a-z\n]+$"
    r"|[A-Z]{2}[A-Z'\u2019 ]*[:.]\s)",
    re.MULTILINE,
)
"""`Romeo:` alone on a line, a line of capitals as the plays' text names speakers, `ROMEO: ` before a speech."""
DIRECTION = re.compile(r"[\[\]_*#<>|]|^\s*(?:Exit|Exeunt)\b|^\s*(?:Re-enter|Enter)\b.*\b[A-Z]{2,}", re.MULTILINE)
"""Signs that only Markdown and templates have, and lines of what people do on the stage."""


def reward(answers: Sequence[Answer]) -> list[float]:
    """For each answer the share of different runs of words, times what its form is worth; between 0 and 1."""
    return [distinct_share(answer.text) * form(answer.text, answer.ended) for answer in answers]


def form(text: str, ended: bool) -> float:
    """One half for an answer that nobody had to cut, one for one without speakers' headings and stage directions."""
    clean = not (HEADING.search(text) or DIRECTION.search(text))
    return (clean + ended) / 2


def distinct_share(text: str) -> float:
    """Different runs of four words as a share of all; 1 for a text of fewer words, 0 for one without words."""
    words = WORD.findall(text.lower())
    grams = [tuple(words[start : start + GRAM]) for start in range(max(len(words) - GRAM + 1, min(len(words), 1)))]
    return len(set(grams)) / len(grams) if grams else 0.0
