"""What a model reads with and without a passage, and what it loses."""

import numpy as np
import pytest
import torch

from ava_core.generation.loading import load_model
from benchmarks.retrieval_in_context import QUERY, STRIDE, nats, windows


@pytest.mark.parametrize(("place", "begin"), [(200, 0), (200, 190), (60, 60)])
def test_windows_end_before_the_last_target_and_stay_in_the_document(place, begin):
    tokens = np.arange(1_000, 1_300)
    read = windows(tokens, place, 128, begin, list(range(1, 31)), 0)
    for way, ids in read.items():
        assert len(ids) <= 128 and ids[0] == 0
        own = [token - 1_000 for token in ids if token >= 1_000]
        assert own == list(range(own[0] if own else 0, place + STRIDE - 1)) and min(own) >= begin
        assert [token for token in ids if 0 < token < 1_000] == (list(range(1, 31)) if way == "passage" else [])
    if begin == 0:
        assert len(read["alone"]) == len(read["passage"]) == 128 and len(read["shorter"]) == 98


def test_a_long_passage_leaves_the_tokens_that_it_was_found_by():
    read = windows(np.arange(1_000, 1_300), 200, 128, 0, [1] * 500, 0)
    assert len(read["passage"]) == 128 and len(read["shorter"]) == 1 + QUERY + STRIDE - 1


def test_loss_is_of_the_targets_one_after_another(tiny_model):
    model, _ = load_model(tiny_model)
    tokens = np.arange(5, 45)
    targets = tokens[20 : 20 + STRIDE]
    read = [0, *tokens[: 20 + STRIDE - 1].tolist()]
    with torch.no_grad():
        logits = model(torch.tensor([read])).logits[0].log_softmax(-1)
    expected = -sum(float(logits[20 + step, target]) for step, target in enumerate(targets.tolist()))
    assert nats(model, read, targets) == pytest.approx(expected, rel=1e-5)
