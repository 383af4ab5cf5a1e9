"""The benchmarks of stores and of whole indexes: what they compare is right."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import retrieval_scale, retrieval_stores

COUNT = 11_000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "vectors.f32"
    path.write_bytes(b"".join(vectors.tobytes() for vectors in retrieval_stores.drawn(COUNT, seed=1)))
    return path


def test_vectors_are_read_as_they_were_drawn_and_the_nearest_of_all_are_found(file: Path) -> None:
    drawn = np.concatenate(list(retrieval_stores.drawn(COUNT, seed=1)))
    assert np.array_equal(np.concatenate(list(retrieval_stores.chunks(file))), drawn)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, rtol=1e-5)
    queries = drawn[[3, COUNT - 1]]
    right = np.argsort(-(queries @ drawn.T), axis=1)[:, : retrieval_stores.TOP_K]
    assert retrieval_stores.nearest(file, queries) == right.tolist()


@pytest.mark.parametrize("store", ["ava", "faiss"])
def test_a_store_finds_most_of_the_nearest(file: Path, tmp_path: Path, store: str) -> None:
    built = retrieval_stores.measure_build(store, tmp_path, file)
    asked = retrieval_stores.measure_queries(store, tmp_path, file)
    right = retrieval_stores.nearest(file, next(retrieval_stores.drawn(retrieval_stores.QUERIES, seed=2)))
    hits = sum(len(set(found) & set(expected)) for found, expected in zip(asked["found"], right, strict=True))
    assert hits > 0.9 * retrieval_stores.TOP_K * retrieval_stores.QUERIES
    assert built["seconds"] > 0
    assert asked["p99"] >= asked["p50"] > 0


def test_by_hand_and_by_ava_much_of_the_same_is_found(tmp_path: Path) -> None:
    answers = {}
    for subject in ("ava", "by_hand"):
        folder = tmp_path / subject
        folder.mkdir()
        retrieval_scale.BUILD[subject](folder, 500, retrieval_scale.Clock())
        ask = retrieval_scale.ASK[subject](folder)
        answers[subject] = [set(ask(*query)) for query in retrieval_scale.queries()[:30]]
    common = [len(ours & theirs) for ours, theirs in zip(answers["ava"], answers["by_hand"], strict=True)]
    # By hand the ranks are fused, as is usual; of 500 passages two tens have 0.2 in common by chance.
    assert np.mean(common) > 1.5
