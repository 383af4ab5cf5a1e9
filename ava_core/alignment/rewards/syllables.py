"""Syllables of English verse: counted by the CMU Pronouncing Dictionary, by vowels where it lacks a word.

The dictionary comes with the package pysyllables (MIT; the dictionary itself is under a BSD licence). It has 134,000
words as they are spoken in North America today; some have several pronunciations. What it lacks of the plays are names
and old forms; `fewest_and_most` says how these are counted.
"""

from __future__ import annotations

import re
from functools import lru_cache

WORD = re.compile(r"['\u2019]?[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
"""A word; an apostrophe may begin it, as in 'tis, or stand in it."""
MOST_PRONUNCIATIONS = 4
"""Of one word that are looked at; the dictionary numbers them: word, word(1), word(2)."""
SILENT_E = re.compile(r"(?<=[^aeiouy])(?<![^aeiouy]l)e$|(?<=[^aeiouydt])ed$|(?<=[^aeiouyscxz])(?<!ch|sh)(?<!g)es$")
"""Of `name`, not of `table`; of `named`, not of `wanted`; of `names`, not of `faces`, `ages`, `wishes`."""
VOWELS = re.compile(r"[aeiouy]+")
TWO_VOWELS = re.compile(r"i(?=[ao](?!u))(?<![cgstx]i)|u(?=[ao])(?<![qg]u)|[aeo](?=ing$)|e(?=o[^uo])|y(?=ing$)")
"""A vowel that begins a group of two syllables: `lion`, not `nation`; `dual`, not `equal`; `being`."""


def syllables_of_line(line: str) -> tuple[int, int]:
    """Fewest and most syllables of a line, over the pronunciations of its words; (0, 0) without words."""
    counts = [fewest_and_most(word.lower().replace("\u2019", "'")) for word in WORD.findall(line)]
    return sum(fewest for fewest, _ in counts), sum(most for _, most in counts)


@lru_cache(maxsize=65_536)
def fewest_and_most(word: str) -> tuple[int, int]:
    """Fewest and most syllables of a word.

    As the dictionary has it; with the e that an apostrophe stands for (banish'd is counted as banished); without its
    `'s`; else by its groups of vowels.

    Args:
        word: in lower case, with straight apostrophes.
    """
    for spelling in (word, word.replace("'d", "ed"), word.removesuffix("'s"), word.strip("'")):
        if counts := _in_dictionary(spelling):
            return min(counts), max(counts)
    count = by_vowels(word)
    return count, count


def by_vowels(word: str) -> int:
    """Syllables of a word that no dictionary has: its groups of vowels, without a silent e; at least one."""
    spelled = SILENT_E.sub("", word.replace("'", ""))
    return max(1, len(VOWELS.findall(spelled)) + len(TWO_VOWELS.findall(spelled)))


def _in_dictionary(word: str) -> list[int]:
    from pysyllables import get_syllable_count

    first = get_syllable_count(word)
    if first is None:
        return []
    others = (get_syllable_count(f"{word}({number})") for number in range(1, MOST_PRONUNCIATIONS))
    return [first, *(count for count in others if count is not None)]
