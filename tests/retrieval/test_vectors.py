"""Dense search beside the comparison with every vector."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ava_core.errors import AvaError, IntegrityError
from ava_core.retrieval import vectors as searching
from ava_core.retrieval.vectors import Vectors
from ava_core.retrieval.vectors_build import VectorsWriter
from tests.retrieval.made import contents, unit_vectors

COUNT, DIMENSION = 12_000, 32
QUERIES = unit_vectors(50, DIMENSION, seed=0)[:50]


def built(folder: Path, vectors: np.ndarray, at_once: int = 1000, **options: int) -> Path:
    folder.mkdir()
    writer = VectorsWriter(folder, vectors.shape[1], **options)
    for first in range(0, len(vectors), at_once):
        writer.add(vectors[first : first + at_once])
    writer.close()
    return folder


def exact(vectors: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray | None = None) -> list[int]:
    scores = vectors.astype(np.float16).astype(np.float32) @ query
    if allowed is not None:
        scores[~allowed] = -np.inf
    return np.lexsort((np.arange(len(scores)), -scores))[:k].tolist()


@pytest.fixture(scope="module")
def made() -> np.ndarray:
    return unit_vectors(COUNT, DIMENSION)


@pytest.fixture(scope="module")
def folder(made: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("vectors") / "index", made)


def test_up_to_some_thousands_every_vector_is_compared(tmp_path: Path) -> None:
    made = unit_vectors(3000, DIMENSION)
    folder = built(tmp_path / "index", made)
    index = Vectors(folder)
    assert [file.name for file in folder.iterdir()] == ["vectors.npy"]
    for query in QUERIES:
        found, scores = index.search(query, 10)
        assert found.tolist() == exact(made, query, 10)
        np.testing.assert_allclose(scores, made[found] @ query, atol=1e-3)


def test_of_many_vectors_nearly_all_nearest_are_found(
    made: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_LISTS", 6)  # of 11
    index = Vectors(folder)
    found = [set(index.search(query, 10)[0].tolist()) & set(exact(made, query, 10)) for query in QUERIES]
    assert sum(map(len, found)) >= 0.95 * 10 * len(QUERIES)


@pytest.mark.parametrize("share", [0.99, 0.9])
def test_only_allowed_vectors_are_ranked(made: np.ndarray, folder: Path, share: float) -> None:
    index = Vectors(folder)
    allowed = np.random.default_rng(0).random(COUNT) < share
    assert (np.count_nonzero(allowed) > searching.EXACT_MOST) == (share > 0.83)
    hits = 0
    for query in QUERIES:
        found, _ = index.search(query, 10, allowed)
        assert len(found) == 10
        assert allowed[found].all()
        hits += len(set(found.tolist()) & set(exact(made, query, 10, allowed)))
    assert hits >= 0.95 * 10 * len(QUERIES)


def test_where_few_are_allowed_all_of_them_are_compared(made: np.ndarray, folder: Path) -> None:
    allowed = np.random.default_rng(0).random(COUNT) < 0.01
    index = Vectors(folder)
    for query in QUERIES:
        assert index.search(query, 10, allowed)[0].tolist() == exact(made, query, 10, allowed)


def test_the_same_vectors_give_the_same_bytes_however_they_come(made: np.ndarray, folder: Path, tmp_path: Path) -> None:
    assert contents(folder) == contents(built(tmp_path / "again", made, at_once=777))


def test_vectors_that_are_taken_over_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    taken = Vectors(folder).vectors(np.arange(COUNT))
    assert contents(folder) == contents(built(tmp_path / "again", taken))


def test_equal_vectors_are_in_order(tmp_path: Path) -> None:
    same = np.repeat(unit_vectors(1, DIMENSION), 700, axis=0)
    assert Vectors(built(tmp_path / "index", same)).search(same[0], 4)[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.ones((2, 5), np.float32), r"shape \(2, 5\) for an index of 32"),
        (np.full((2, DIMENSION), np.nan, np.float32), "vector 3 has length nan"),
        (2 * unit_vectors(2, DIMENSION), "vector 3 has length 2"),
    ],
)
def test_vectors_of_another_shape_or_length_are_refused(tmp_path: Path, wrong: np.ndarray, message: str) -> None:
    (tmp_path / "index").mkdir()
    writer = VectorsWriter(tmp_path / "index", DIMENSION)
    writer.add(unit_vectors(3, DIMENSION))
    with pytest.raises(AvaError, match=message):
        writer.add(wrong)


def test_a_query_of_another_dimension_is_refused(folder: Path) -> None:
    with pytest.raises(AvaError, match="shape \\(5,\\) for an index of 32 dimensions"):
        Vectors(folder).search(np.ones(5), 3)


def test_lists_that_were_cut_are_refused(made: np.ndarray, tmp_path: Path) -> None:
    folder = built(tmp_path / "index", made)
    with (folder / "lists.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(IntegrityError, match="build the index anew"):
        Vectors(folder)


def test_of_an_inverted_file_as_many_are_found_as_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_LISTS", 4)
    monkeypatch.setattr(searching, "_MOST_LISTS", 8)
    made = unit_vectors(30_000, DIMENSION)
    index = Vectors(built(tmp_path / "index", made))
    assert len(np.load(tmp_path / "index" / "centroids.npy")) > 8
    for k in (1, 3000, 30_000):
        found, scores = index.search(made[0], k)
        assert len(found) == len(set(found.tolist())) == k
        assert (np.diff(scores) <= 0).all()


def test_faiss_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(AvaError, match=r"faiss-cpu.*install ava-moe\[retrieval\]"):
        built(tmp_path / "index", unit_vectors(20, DIMENSION), exact_most=10)
