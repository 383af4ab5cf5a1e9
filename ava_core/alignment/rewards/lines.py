"""`lines`: whether an answer is broken into lines as verse is.

The bounds are those of the plays: of 3,728 speeches of verse, 98 in 100 inner lines have 25 to 55 characters. What
tells verse from prose is the capital at the beginning of each line: lines of prose in the plays are as long.
"""

from __future__ import annotations

from collections.abc import Sequence

from ava_core.alignment.rewards.answer import Answer

SHORTEST, LONGEST = 25, 55
"""Characters of a whole line of verse."""
ALONE = 0.5
"""What one line alone is worth: nobody can see whether it would have been broken in the right place."""


def reward(answers: Sequence[Answer]) -> list[float]:
    """For each answer the share of its lines that are lines of verse, between 0 and 1; of one line half of that."""
    return [lines_of_verse(answer.text) for answer in answers]


def lines_of_verse(text: str) -> float:
    """Share of the lines that begin with a capital and are neither too short nor too long; lines of blanks don't count.

    The first and the last line may be short, for speakers share lines, if there is a whole one in the text.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lengths = [len(line) for line in lines]
    if not any(SHORTEST <= length <= LONGEST for length in lengths):
        return 0.0
    good = 0
    for position, (line, length) in enumerate(zip(lines, lengths, strict=True)):
        shortest = 1 if position in (0, len(lines) - 1) else SHORTEST
        good += shortest <= length <= LONGEST and _begins_with_capital(line)
    return good / len(lines) * (1.0 if len(lines) > 1 else ALONE)


def _begins_with_capital(line: str) -> bool:
    """Whether its first letter is one; quotes and apostrophes may stand before it, but no apostrophe of 'tis, 'twas."""
    first = next((letter for letter in line if letter.isalpha()), "")
    return first.isupper()
