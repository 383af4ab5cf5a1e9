"""Building a vector index in bounded memory: the vectors as they are, and from some thousands on an inverted file.

The inverted file is FAISS's (IVF with 8-bit scalar quantisation of the residuals): k-means on a sample gives centroids,
and the codes of the vectors nearest to one of them lie side by side, so that a query reads few pages. FAISS trains,
assigns and encodes; codes are written straight to their place in the layout of its on-disk lists. The sample is spread
evenly and the seed fixed: the same vectors give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.errors import AvaError
from ava_core.retrieval.arrays import ArrayWriter, write_array

EXACT_MOST = 10_000
"""Vectors that are compared one by one: that takes 3 ms of 384 dimensions, and no training."""
_PER_LIST = 1024
_MOST_LISTS = 4096
_SAMPLE = 65_536
_SAMPLE_PER_LIST = 32
_SAMPLE_OF_CODES = 16_384
_ITERATIONS = 10
_SEED = 1234
_CHUNK_BYTES = 1 << 24
"""Of the float32 vectors that are in memory at once."""
_LENGTH_TOLERANCE = 0.01


class VectorsWriter:
    """Writes an index of vectors into a folder that exists.

    Args:
        folder: of the index.
        dimension: of a vector.
        exact_most: up to so many vectors, there is no inverted file.
    """

    def __init__(self, folder: Path, dimension: int, *, exact_most: int = EXACT_MOST) -> None:
        self._folder, self._dimension, self._exact_most = folder, dimension, exact_most
        self._vectors = ArrayWriter(folder / "vectors.npy", np.float16, (dimension,))

    def add(self, vectors: np.ndarray) -> None:
        """Append vectors of length 1, (n, dimension), numbered from 0 over all calls; they are kept as float16.

        Raises:
            AvaError: another shape, or a vector of another length (or none, as of NaN).
        """
        if vectors.ndim != 2 or vectors.shape[1] != self._dimension:
            raise AvaError(f"vectors of shape {vectors.shape} for an index of {self._dimension} dimensions")
        lengths = np.linalg.norm(vectors.astype(np.float32, copy=False), axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < _LENGTH_TOLERANCE))
        if len(wrong):
            number = self._vectors.rows + int(wrong[0])
            raise AvaError(f"vector {number:,} has length {lengths[wrong[0]]:.4g}, not 1: normalise the vectors")
        self._vectors.append(vectors)

    def close(self) -> None:
        """Write what was added, and the inverted file."""
        self._vectors.close()
        if self._vectors.rows > self._exact_most:
            _InvertedFile(self._folder, self._vectors.rows, self._dimension).write()


def library() -> Any:
    """FAISS, which only an index with an inverted file needs. Its hints of types don't know what its modules do.

    Raises:
        AvaError: it isn't installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise AvaError(
            "faiss-cpu, which an index of so many vectors needs, isn't installed: install ava-moe[retrieval], or set"
            " retrieval.embedding = none"
        ) from error
    return faiss


def empty_lists(centroids: np.ndarray, trained: np.ndarray | None = None) -> Any:
    """FAISS's inverted file with these centroids (lists, dimension), without vectors.

    Args:
        centroids: float32.
        trained: of the quantiser; None: it isn't trained yet.
    """
    faiss = library()
    count, dimension = centroids.shape
    nearest = faiss.IndexFlatIP(dimension)
    nearest.add(np.ascontiguousarray(centroids))
    index = faiss.IndexIVFScalarQuantizer(
        nearest, dimension, count, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.referenced_objects = [nearest]  # FAISS keeps no hold of it
    if trained is not None:
        faiss.copy_array_to_vector(np.ascontiguousarray(trained), index.sq.trained)
        index.is_trained = True
    return index


class _InvertedFile:
    """Makes an inverted file of the vectors in a folder: centroids.npy, quantiser.npy, list_ends.npy, lists.bin."""

    def __init__(self, folder: Path, count: int, dimension: int) -> None:
        self._folder, self._count, self._dimension = folder, count, dimension
        self._chunk = max(1024, _CHUNK_BYTES // (4 * dimension))

    def write(self) -> None:
        lists = min(max(1, self._count // _PER_LIST), _MOST_LISTS)
        sample = self._sample(max(_SAMPLE, lists * _SAMPLE_PER_LIST))
        centroids = _centroids(sample, lists)
        index = empty_lists(centroids)
        index.train(sample[:: max(1, len(sample) // _SAMPLE_OF_CODES)])  # of codes alone: the centroids are there
        del sample
        write_array(self._folder / "centroids.npy", centroids)
        write_array(self._folder / "quantiser.npy", library().vector_to_array(index.sq.trained))
        nearest = [index.quantizer.assign(vectors, 1)[:, 0].astype(np.int32) for vectors in self._chunks()]
        assigned = np.concatenate(nearest)
        ends = np.cumsum(np.bincount(assigned, minlength=len(centroids)))
        write_array(self._folder / "list_ends.npy", ends)
        self._write_lists(index, assigned, ends)

    def _write_lists(self, index: Any, lists: np.ndarray, ends: np.ndarray) -> None:
        """lists.bin: of each list the codes of its vectors, then their numbers (int64)."""
        size = index.code_size
        starts = np.concatenate([[0], ends[:-1]])
        written = np.zeros(len(ends), np.int64)
        descriptor = os.open(self._folder / "lists.bin", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            first = 0
            for vectors in self._chunks():
                here = lists[first : first + len(vectors)].astype(np.int64)
                codes = np.empty((len(vectors), size), np.uint8)
                index.encode_vectors(len(vectors), _pointer(vectors), _pointer(here), _pointer(codes))
                order = np.argsort(here, kind="stable")
                codes, numbers = codes[order], order.astype(np.int64) + first
                found, begins, counts = np.unique(here[order], return_index=True, return_counts=True)
                for number, begin, count in zip(found.tolist(), begins.tolist(), counts.tolist(), strict=True):
                    base, at = int(starts[number]) * (size + 8), int(written[number])
                    base_of_numbers = base + int(ends[number] - starts[number]) * size
                    _write_at(descriptor, codes[begin : begin + count], base + at * size)
                    _write_at(descriptor, numbers[begin : begin + count], base_of_numbers + at * 8)
                written[found] += counts
                first += len(vectors)
        finally:
            os.close(descriptor)

    def _chunks(self) -> Iterator[np.ndarray]:
        """All vectors in order as float32, some at a time; read, not mapped: a map's pages would count as memory."""
        with (self._folder / "vectors.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            for first in range(0, self._count, self._chunk):
                rows = min(self._chunk, self._count - first)
                values = np.fromfile(file, np.float16, rows * self._dimension)
                yield values.reshape(rows, self._dimension).astype(np.float32)

    def _sample(self, most: int) -> np.ndarray:
        """At most so many vectors, spread evenly."""
        wanted = np.linspace(0, self._count - 1, min(self._count, most)).astype(np.int64)
        sample, first, taken = np.empty((len(wanted), self._dimension), np.float32), 0, 0
        for vectors in self._chunks():
            until = int(np.searchsorted(wanted, first + len(vectors)))
            sample[taken:until] = vectors[wanted[taken:until] - first]
            first, taken = first + len(vectors), until
        return sample


def _centroids(sample: np.ndarray, count: int) -> np.ndarray:
    """k-means by direction (spherical), (count, dimension) of float32."""
    faiss = library()
    clusters = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=_ITERATIONS,
        seed=_SEED,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample),
    )
    clusters.train(sample)
    return clusters.centroids


def _pointer(values: np.ndarray) -> Any:
    return library().swig_ptr(values)


def _write_at(descriptor: int, values: np.ndarray, offset: int) -> None:
    remaining = np.ascontiguousarray(values).data.cast("B")
    while remaining:
        written = os.pwrite(descriptor, remaining, offset)
        remaining, offset = remaining[written:], offset + written
