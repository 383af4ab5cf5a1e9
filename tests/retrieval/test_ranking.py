"""The best of many scores."""

import numpy as np
import pytest

from ava_core.retrieval.ranking import best


@pytest.mark.parametrize("count", [0, 5, 30, 300, 5000, 50_000])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_best_are_those_of_sorting_all(count: int, share: float, k: int) -> None:
    rng = np.random.default_rng(0)
    # Few different values, so that there are ties at every place.
    scores = (rng.integers(1, 50, count) * (rng.random(count) < share)).astype(np.float32)
    right = np.lexsort((np.arange(count), -scores))[:k]
    assert best(scores, k).tolist() == right[scores[right] > 0].tolist()
    assert best(scores - 25, k, above=-np.inf).tolist() == right.tolist()
