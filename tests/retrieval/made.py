"""Passages and vectors that tests make indexes of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.retrieval.building import building_index
from ava_core.retrieval.passage import Passage

DIMENSION = 16


def passages(count: int, *, labels: Sequence[str] = ("",), seed: int = 0) -> list[Passage]:
    """Passages of words that are as unevenly frequent as those of a language, 5 to a document."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        drawn = " ".join(f"w{word}" for word in rng.zipf(1.3, 20) % 500)
        place = (number % 5) * 100
        made.append(
            Passage(
                f"{drawn} nr{number}",
                f"doc{number // 5}",
                place,
                place + 90,
                f"Part {number % 3}",
                f"{number // 5:064x}",
                labels[number % len(labels)],
            )
        )
    return made


def unit_vectors(count: int, dimension: int = DIMENSION, *, seed: int = 0) -> np.ndarray:
    """Vectors of length 1 around 20 centres, (count, dimension)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, dimension))
    made = centres[rng.integers(20, size=count)] + 0.5 * rng.standard_normal((count, dimension))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def build(
    path: Path,
    given: Sequence[Passage],
    vectors: np.ndarray | None,
    *,
    at_once: int = 64,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """An index of passages and their vectors, added some at a time."""
    dimension = 0 if vectors is None else vectors.shape[1]
    with building_index(
        path, embedding="test" if dimension else "", dimension=dimension, settings=settings or {}
    ) as builder:
        for first in range(0, len(given), at_once):
            part = slice(first, first + at_once)
            builder.add(given[part], None if vectors is None else vectors[part])
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder, by path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
