"""Dense search: the vectors that are nearest to a query's by inner product, in files that are mapped into memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.errors import AvaError, IntegrityError
from ava_core.retrieval.arrays import open_array
from ava_core.retrieval.ranking import best
from ava_core.retrieval.vectors_build import EXACT_MOST, empty_lists, library

_LISTS = 128
"""An eighth of the lists of a million vectors: that much gave a recall@10 of 0.9 with embeddings of verse."""
_MOST_LISTS = 512
_LISTS_PER_RESULT = 1 / 32
"""Each has about a thousand vectors."""
_SPARE = 40
"""Candidates beyond those wanted: their codes' order isn't quite that of the vectors."""
_BLOCK = 512


class Vectors:
    """Searches what `VectorsWriter` wrote.

    Candidates come from the inverted file, by codes of 8 bits; the order of results and their scores are those of the
    vectors themselves (float16). Where no more than EXACT_MOST vectors may be found, all of them are compared.

    Args:
        folder: of the index.

    Raises:
        IntegrityError: a file is missing or isn't what it was.
    """

    def __init__(self, folder: Path) -> None:
        self._vectors = open_array(folder / "vectors.npy")
        if self._vectors.ndim != 2 or self._vectors.dtype != np.float16:
            raise IntegrityError(f"{folder / 'vectors.npy'} isn't an array of float16 vectors: build the index anew")
        self._inverted: Any = _open_lists(folder, *self._vectors.shape) if (folder / "lists.bin").exists() else None

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dimension(self) -> int:
        return self._vectors.shape[1]

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """The vectors of these numbers, (n, dimension) of float16."""
        return self._vectors[numbers]

    def search(self, query: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors.

        Args:
            query: (dimension,).
            k: at most as many.
            allowed: (vectors,) of bool, which may be found; None: all.

        Returns:
            Numbers (n,) of int64 and inner products (n,) of float32, the best first, equal ones by number.

        Raises:
            AvaError: a query of another dimension.
        """
        query = np.asarray(query, np.float32)
        if query.shape != (self.dimension,):
            raise AvaError(f"a query of shape {query.shape} for an index of {self.dimension} dimensions")
        if self._inverted is None:
            candidates = None if allowed is None else np.flatnonzero(allowed)
        else:
            count = len(self) if allowed is None else int(np.count_nonzero(allowed))
            if allowed is not None and count <= EXACT_MOST:
                candidates = np.flatnonzero(allowed)
            else:
                candidates = self._candidates(query, k, allowed, len(self) / count)
        scores = self.products(query, candidates)
        order = best(scores, k, above=-np.inf)
        return (order if candidates is None else candidates[order]), scores[order]

    def search_many(self, queries: np.ndarray, k: int, lists: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors of many queries, in a fraction of the time: inner products are those of the codes, where
        there are any.

        Args:
            queries: (n, dimension).
            k: results of each.
            lists: that are read for each.

        Returns:
            Numbers (n, k) of int64 and inner products (n, k) of float32, the best first; -1 and -inf where there are
            no more.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if self._inverted is not None:
            parameters = library().SearchParametersIVF(nprobe=lists)
            products, numbers = self._inverted.search(queries, k, params=parameters)
            products[numbers < 0] = -np.inf
            return numbers, products
        every = queries @ _widened(self._vectors).T
        order = np.argsort(-every, axis=1, kind="stable")[:, :k]
        missing = ((0, 0), (0, k - order.shape[1]))
        products = np.take_along_axis(every, order, axis=1)
        return np.pad(order, missing, constant_values=-1), np.pad(products, missing, constant_values=-np.inf)

    def products(self, query: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
        """Inner products with the vectors of these numbers, (n,) of float32; None: with all."""
        count = len(self) if numbers is None else len(numbers)
        products = np.empty(count, np.float32)
        for first in range(0, count, _BLOCK):
            block = slice(first, first + _BLOCK)
            products[block] = _widened(self._vectors[block if numbers is None else numbers[block]]) @ query
        return products

    def _candidates(self, query: np.ndarray, k: int, allowed: np.ndarray | None, rarity: float) -> np.ndarray:
        """Numbers of vectors that are near by their codes, in order.

        The more are wanted, and the fewer of all are allowed, the more lists are read.
        """
        faiss = library()
        lists = math.ceil(max(_LISTS, _LISTS_PER_RESULT * k) * rarity)
        lists = min(lists, max(_MOST_LISTS, math.ceil(_LISTS_PER_RESULT * k)))
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")  # FAISS keeps no hold of them
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        parameters = faiss.SearchParametersIVF(nprobe=lists, sel=selector)
        _, found = self._inverted.search(query[None], k + _SPARE, params=parameters)
        return np.sort(found[0][found[0] >= 0])


def _widened(vectors: np.ndarray) -> np.ndarray:
    """Finite float16 as float32, in a quarter of NumPy's time: the bits move, the exponent's bias follows."""
    bits = vectors.view(np.uint16).astype(np.uint32)
    return ((bits & 0x8000) << 16 | (bits & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112)


def _open_lists(folder: Path, count: int, dimension: int) -> Any:
    """FAISS's inverted file over the mapped lists."""
    faiss = library()
    centroids, trained = open_array(folder / "centroids.npy"), open_array(folder / "quantiser.npy")
    ends = open_array(folder / "list_ends.npy")
    path = folder / "lists.bin"
    size = path.stat().st_size
    shapes = [(len(ends), dimension), (2 * dimension,)]
    if [centroids.shape, trained.shape] != shapes or size != count * (dimension + 8):
        raise IntegrityError(f"{folder} has files of different sizes: build the index anew")
    index = empty_lists(np.asarray(centroids, np.float32), np.asarray(trained, np.float32))
    lists = faiss.OnDiskInvertedLists()
    lists.nlist, lists.code_size, lists.filename, lists.read_only = len(ends), index.code_size, str(path), True
    start = 0
    for end in ends.tolist():
        place = faiss.OnDiskOneList()
        place.size = place.capacity = end - start
        place.offset = start * (index.code_size + 8)
        lists.lists.push_back(place)
        start = end
    lists.prefetch_nthread = 0  # FAISS would start 16 threads per query, which costs more than reading does
    lists.totsize = size
    lists.do_mmap()
    index.replace_invlists(lists, False)
    index.referenced_objects.append(lists)
    index.ntotal = count
    return index
