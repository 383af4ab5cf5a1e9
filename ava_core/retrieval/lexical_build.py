"""Building a BM25 index of any size in bounded memory, in the files of bm25s (arXiv 2407.03618).

bm25s scores every pair of word and passage when it builds, so that a query is a sum of columns; its own build keeps
all pairs in memory. Here pairs are sorted in runs on disk, as much as fits into a few tens of MB each; what is kept is
the vocabulary, and 4 bytes per passage. Then the runs are merged, a range of words at a time, and scored with bm25s's
functions, which need the number of passages with each word: so scores are those of the whole collection, exactly.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import bm25s
import numpy as np
from bm25s import scoring

from ava_core.files import write_json
from ava_core.retrieval.arrays import ArrayWriter, write_array
from ava_core.retrieval.vocabulary import write_vocabulary
from ava_core.retrieval.words import words

METHOD, K1, B = "lucene", 1.5, 0.75
_WORDS_PER_RUN = 2_000_000
_PAIRS_PER_BLOCK = 1_000_000


class LexicalWriter:
    """Writes an index of texts into a folder that exists.

    Args:
        folder: of the index.
        scratch: an empty folder for runs, 12 bytes per pair of word and passage; the caller removes it.
        words_per_run: words that are sorted in memory at once.
        pairs_per_block: pairs of word and passage that are merged in memory at once.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        *,
        words_per_run: int = _WORDS_PER_RUN,
        pairs_per_block: int = _PAIRS_PER_BLOCK,
    ) -> None:
        self._folder, self._scratch = folder, scratch
        self._words_per_run, self._pairs_per_block = words_per_run, pairs_per_block
        self._vocabulary: defaultdict[str, int] = defaultdict()
        self._vocabulary.default_factory = self._vocabulary.__len__  # a new word gets the next number
        self._numbers = array("I")
        self._lengths = array("I")
        self._sorted_passages = 0
        self._frequencies = np.zeros(0, np.int64)
        self._runs: list[_Run] = []

    def add(self, texts: Iterable[str]) -> None:
        """Append texts, which are numbered from 0 over all calls."""
        number = self._vocabulary.__getitem__
        for text in texts:
            found = words(text)
            self._numbers.extend(map(number, found))
            self._lengths.append(len(found))
            if len(self._numbers) >= self._words_per_run:
                self._sort()

    def close(self) -> None:
        """Merge and score what was added, and write the index."""
        self._sort()
        lengths = np.frombuffer(self._lengths, np.uint32) if self._lengths else np.zeros(0, np.uint32)
        pointers = np.concatenate([[0], np.cumsum(self._frequencies)]).astype(np.int64)
        scorer = _Scorer(self._frequencies, lengths)
        with (
            ArrayWriter(self._folder / "data.csc.index.npy", np.float32) as data,
            ArrayWriter(self._folder / "indices.csc.index.npy", np.int32) as indices,
        ):
            for keys, counts in self._merged(pointers):
                data.append(scorer(keys, counts))
                indices.append(keys & 0xFFFFFFFF)
        write_array(self._folder / "indptr.csc.index.npy", pointers)
        write_vocabulary(self._folder, self._vocabulary)
        write_json(self._folder / "params.index.json", _parameters(len(lengths)))

    def _sort(self) -> None:
        """Write a run: the pairs of word and passage, sorted, with how often the passage has the word."""
        if not self._numbers:
            self._sorted_passages = len(self._lengths)
            return
        lengths = np.frombuffer(self._lengths, np.uint32)[self._sorted_passages :]
        passages = np.repeat(np.arange(self._sorted_passages, len(self._lengths), dtype=np.uint64), lengths)
        keys = np.frombuffer(self._numbers, np.uint32).astype(np.uint64) << np.uint64(32) | passages
        del passages, lengths  # an array that is looked at can't grow
        keys.sort()
        firsts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        counts = np.diff(firsts, append=len(keys)).astype(np.uint32)
        keys = keys[firsts]
        here = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(self._vocabulary))
        here[: len(self._frequencies)] += self._frequencies
        self._frequencies = here
        self._runs.append(_Run(self._scratch / f"run{len(self._runs)}", keys, counts))
        self._numbers = array("I")
        self._sorted_passages = len(self._lengths)

    def _merged(self, pointers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Keys and counts of all runs in order, a range of words at a time, or a run at a time of one frequent word."""
        first = 0
        while first < len(pointers) - 1:
            last = int(np.searchsorted(pointers, pointers[first] + self._pairs_per_block, side="right")) - 1
            if last <= first:
                last = first + 1
                yield from (run.read_until(last) for run in self._runs)
            else:
                parts = [run.read_until(last) for run in self._runs]
                keys, counts = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
                order = np.argsort(keys, kind="stable")
                yield keys[order], counts[order]
            first = last
        for run in self._runs:
            run.remove()


class _Run:
    """Sorted pairs on disk, read from the first on."""

    def __init__(self, path: Path, keys: np.ndarray, counts: np.ndarray) -> None:
        self._keys, self._counts = path.with_suffix(".keys"), path.with_suffix(".counts")
        for file, values in ((self._keys, keys), (self._counts, counts)):
            with file.open("wb") as opened:
                opened.write(values.data)
        self._length, self._position = len(keys), 0

    def read_until(self, word: int) -> tuple[np.ndarray, np.ndarray]:
        """The keys and counts that weren't read yet of the words below `word`."""
        with self._keys.open("rb") as keys, self._counts.open("rb") as counts:
            end = bisect_left(_KeysOnDisk(keys.fileno(), self._length), word << 32, lo=self._position)
            start, length = self._position, end - self._position
            self._position = end
            return (
                np.fromfile(keys, np.uint64, length, offset=start * 8),
                np.fromfile(counts, np.uint32, length, offset=start * 4),
            )

    def remove(self) -> None:
        self._keys.unlink()
        self._counts.unlink()


class _KeysOnDisk:
    """What bisect needs of a file of keys: a map would count as memory, page by page."""

    def __init__(self, descriptor: int, length: int) -> None:
        self._descriptor, self._length = descriptor, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> int:
        return int.from_bytes(os.pread(self._descriptor, 8, position * 8), "little")


class _Scorer:
    """bm25s's score of a word in a passage, of many pairs at once; in float64, as it does, until the end."""

    def __init__(self, frequencies: np.ndarray, lengths: np.ndarray) -> None:
        idf = scoring._select_idf_scorer(METHOD)
        # Few numbers are those of many words.
        found, inverse = np.unique(frequencies, return_inverse=True)
        self._idf = np.array([idf(df, N=len(lengths)) for df in found.tolist()], np.float32)[inverse]
        self._lengths = lengths
        self._mean_length = lengths.mean() if len(lengths) else 0.0
        self._term_score = scoring._select_tfc_scorer(METHOD)

    def __call__(self, keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
        lengths = self._lengths[(keys & np.uint64(0xFFFFFFFF)).astype(np.int64)].astype(np.float64)
        term = self._term_score(counts.astype(np.float32), l_d=lengths, l_avg=self._mean_length, k1=K1, b=B)
        return self._idf[(keys >> np.uint64(32)).astype(np.int64)] * term


def _parameters(passages: int) -> dict[str, object]:
    """What bm25s's `load` wants to know, in its own words."""
    return {
        "k1": K1,
        "b": B,
        "delta": 0.5,
        "method": METHOD,
        "idf_method": METHOD,
        "dtype": "float32",
        "int_dtype": "int32",
        "num_docs": passages,
        "version": bm25s.__version__,
        "backend": "numpy",
    }
