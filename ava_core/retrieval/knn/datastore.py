"""The datastore of a kNN-LM: a key for each token of a text, by which its context is found, and the token.

Keys have length 1, so that the squared Euclidean distance of two is 2 - 2 times their inner product, and the vectors
and inverted file of an index of passages serve as they are. Number n in the files is token n of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ava_core.files import whole_folder
from ava_core.retrieval.knn.kept import KeptRows
from ava_core.retrieval.knn.mixing import TEMPERATURES, target_probabilities
from ava_core.retrieval.knn.states import Reader
from ava_core.retrieval.vectors import Vectors
from ava_core.retrieval.vectors_build import VectorsWriter

LISTS = 32
"""That are read of the inverted file, of one per 1,024 keys; see benchmarks/LOG.md."""
_QUERIES = 512
"""Looked up at once: of each there are `neighbours` distances in memory."""
_CHUNK = 65_536


@dataclass(frozen=True)
class Datastore:
    """Keys and what followed them.

    Attributes:
        vectors: the keys, as an index.
        values: the token of each key.
    """

    vectors: Vectors
    values: np.ndarray

    @classmethod
    def build(cls, folder: Path, reader: Reader, tokens: np.ndarray, advance: Callable[[int], None]) -> Datastore:
        """Make the datastore of a stream in `folder`, or open it where an earlier run has.

        Args:
            folder: in the state of a step; what a killed run has left there is gone on with.
            reader: of the model.
            tokens: the stream.
            advance: called with the number of tokens done.
        """
        lists = folder / "lists"
        if not lists.is_dir():
            folder.mkdir(exist_ok=True)
            kept = KeptRows(folder / "keys.npy", np.float16, (reader.dimension,))
            for keys in reader.keys(tokens, kept.batches):
                kept.append(keys)
                advance(kept.rows)
            keys = kept.finish()
            with whole_folder(lists) as partial:
                writer = VectorsWriter(partial, reader.dimension)
                for first in range(0, len(keys), _CHUNK):
                    writer.add(keys[first : first + _CHUNK])
                writer.close()
            del keys
        (folder / "keys.npy").unlink(missing_ok=True)
        return cls(Vectors(lists), tokens)

    def target_probabilities(self, keys: np.ndarray, targets: np.ndarray, neighbours: int) -> np.ndarray:
        """p_knn of what follows each context, at each of TEMPERATURES.

        Args:
            keys: of the contexts, (n, dimension).
            targets: the token that follows each.
            neighbours: that are looked up.

        Returns:
            float64 (n, len(TEMPERATURES)).
        """
        found = [np.empty((0, len(TEMPERATURES)))]
        for first in range(0, len(keys), _QUERIES):
            here = slice(first, first + _QUERIES)
            numbers, products = self.vectors.search_many(keys[here], neighbours, LISTS)
            distances = np.maximum(2 - 2 * products, 0)
            values = self.values[np.maximum(numbers, 0)]
            found.append(target_probabilities(distances, values, targets[here], TEMPERATURES))
        return np.concatenate(found)
