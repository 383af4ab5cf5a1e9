"""Removal of repeated documents: exact by SHA-256, near by MinHash signatures in a locality-sensitive index.

MinHash (Broder 1997) estimates the Jaccard similarity of two sets of word shingles by the share of equal entries of
their signatures; the index (`datasketch.MinHashLSH`) finds candidates without comparing all pairs. The first document
of a group stays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ava_core.config.data import DeduplicationConfig

WORD = re.compile(r"\w+")
SEED = 1
"""Of the permutations: fixed, so that the same documents are always removed."""
RECALL = 0.95
"""Least probability with which two documents as similar as the threshold become candidates."""
MAX_SAMPLES = 20


@dataclass
class Deduplicated:
    """The documents that stay, and counts of the removed ones.

    Attributes:
        kept: positions of the documents that stay, rising.
        exact: documents that were byte-identical to an earlier one.
        near: documents that were nearly the same as an earlier one.
        bytes_removed: UTF-8 bytes of both.
        samples: the first removed documents, what each repeats, and the estimated similarity.
    """

    kept: list[int] = field(default_factory=list)
    exact: int = 0
    near: int = 0
    bytes_removed: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """As it stands in cleaning.json."""
        return {
            "documents_out": len(self.kept),
            "exact_duplicates": self.exact,
            "near_duplicates": self.near,
            "bytes_removed": self.bytes_removed,
            "samples": self.samples,
        }


def deduplicate(documents: Iterable[tuple[str, str]], config: DeduplicationConfig) -> Deduplicated:
    """Find the documents that repeat an earlier one.

    Args:
        documents: name and text of each, in order.
        config: the section `data.deduplication`.
    """
    result = Deduplicated()
    names: list[str] = []
    seen: dict[bytes, int] = {}
    near = NearDuplicates(config) if config.near else None
    for position, (name, text) in enumerate(documents):
        names.append(name)
        original: tuple[int, float] | None = None
        if config.exact:
            digest = hashlib.sha256(text.encode()).digest()
            first = seen.setdefault(digest, position)
            if first != position:
                original = (first, 1.0)
                result.exact += 1
        if original is None and near is not None:
            original = near.find_or_add(position, text)
            result.near += original is not None
        if original is None:
            result.kept.append(position)
            continue
        result.bytes_removed += len(text.encode())
        if len(result.samples) < MAX_SAMPLES:
            repeated, similarity = original
            result.samples.append({"document": name, "repeats": names[repeated], "similarity": round(similarity, 4)})
    return result


class NearDuplicates:
    """An index of the documents that stayed.

    Args:
        config: the section `data.deduplication`.
    """

    def __init__(self, config: DeduplicationConfig) -> None:
        from datasketch import MinHash, MinHashLSH

        self._threshold = config.threshold
        self._words = config.shingle_words
        self._empty = MinHash(num_perm=config.num_permutations, seed=SEED)
        bands = choose_bands(config.threshold, config.num_permutations)
        self._index = MinHashLSH(num_perm=config.num_permutations, params=bands)
        self._signatures: dict[int, Any] = {}

    def find_or_add(self, position: int, text: str) -> tuple[int, float] | None:
        """The earliest document that `text` repeats, and its estimated similarity; None if it is new: it is added."""
        signature = self._empty.copy()
        signature.update_batch(shingles(text, self._words))
        for candidate in sorted(self._index.query(signature)):
            similarity = float(signature.jaccard(self._signatures[candidate]))
            if similarity >= self._threshold:
                return candidate, similarity
        self._index.insert(position, signature)
        self._signatures[position] = signature
        return None


def shingles(text: str, words: int) -> list[bytes]:
    """The distinct runs of `words` words, in lower case and sorted; a shorter text is one shingle."""
    found = WORD.findall(text.lower())
    runs = {" ".join(found[start : start + words]) for start in range(max(1, len(found) - words + 1))}
    return sorted(run.encode() for run in runs)


def choose_bands(threshold: float, num_permutations: int) -> tuple[int, int]:
    """Bands and rows of the index: documents are compared if all rows of one band agree.

    The most rows, and so the fewest needless comparisons, with which two documents of similarity `threshold` are
    compared with a probability of `RECALL`: 1 - (1 - threshold^rows)^bands (Leskovec et al., Mining of Massive
    Datasets, section 3.4). The estimate of each candidate is then compared with the threshold. The library's own choice
    weighs false positives as much as false negatives, and refuses thresholds near 1.
    """
    rows = 1
    for candidate in range(1, num_permutations // 2 + 1):
        if 1 - (1 - threshold**candidate) ** (num_permutations // candidate) >= RECALL:
            rows = candidate
    return num_permutations // rows, rows
