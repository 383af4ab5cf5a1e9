"""The words of a lexical index and their numbers, looked up on disk: millions of words cost neither memory nor time.

`words.utf8` has them sorted by their bytes, `words.offsets.npy` where each begins, `words.numbers.npy` their numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ava_core.retrieval.arrays import Rows, RowsWriter, open_array, write_array

_BLOCK = 8192


def write_vocabulary(folder: Path, numbers: Mapping[str, int]) -> None:
    """Write the words with their numbers, 0 to len(numbers) - 1 in any order."""
    rows = RowsWriter(folder / "words.utf8")
    ordered = sorted(numbers)  # code points sort as their UTF-8 does
    for first in range(0, len(ordered), _BLOCK):
        rows.extend(word.encode() for word in ordered[first : first + _BLOCK])
    rows.close()
    write_array(folder / "words.numbers.npy", np.fromiter((numbers[word] for word in ordered), np.uint32, len(ordered)))


class Vocabulary:
    """Looks words up in what `write_vocabulary` wrote."""

    def __init__(self, folder: Path) -> None:
        self._rows = Rows(folder / "words.utf8")
        self._numbers = open_array(folder / "words.numbers.npy")

    def __len__(self) -> int:
        return len(self._rows)

    def numbers(self, words: Iterable[str]) -> list[int]:
        """The numbers of those words that the index has, in the words' order."""
        found = []
        for word in words:
            encoded = word.encode()
            at = bisect_left(self._rows, encoded)
            if at < len(self._rows) and self._rows[at] == encoded:
                found.append(int(self._numbers[at]))
        return found
