import itertools

import pytest
import torch


def test_top_k_weights_are_softmax_probabilities_of_the_k_largest(make_router, make_logits):
    routing = make_router(num_experts_per_token=2)(make_logits())
    expected = make_logits().softmax(-1).topk(2, dim=-1)
    assert torch.equal(routing.expert_ids_TK, expected.indices)
    torch.testing.assert_close(routing.weights_TK, expected.values)
    assert routing.used_TK.all()


def test_confidence_of_one_uses_every_expert(make_router, make_logits):
    router = make_router(router="confidence", confidence_threshold=1.0, max_experts_per_token=None)
    routing = router(make_logits(scale=5))
    assert routing.used_TK.all()
    assert routing.used_TK.shape[1] == 7


def test_more_confidence_uses_more_experts_and_all_of_them_in_the_end(make_router, make_logits):
    counts = []
    for threshold in (0.2, 0.5, 0.9, 0.999999, 1.0):
        router = make_router(router="confidence", confidence_threshold=threshold, max_experts_per_token=None)
        counts.append(router(make_logits()).used_TK.sum(-1))
    assert all((fewer <= more).all() for fewer, more in itertools.pairwise(counts))
    assert (counts[0] < counts[-1]).all() and (counts[-2] == 7).all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_small_confidence_uses_exactly_one_expert(make_router, make_logits, scale):
    routing = make_router(router="confidence", confidence_threshold=1e-6)(make_logits(scale=scale))
    assert torch.equal(routing.used_TK.sum(-1), torch.ones(64, dtype=torch.long))


def test_confidence_takes_the_fewest_experts_that_reach_the_threshold(make_router, make_logits):
    router = make_router(router="confidence", confidence_threshold=0.6, max_experts_per_token=None)
    routing = router(make_logits())
    chosen = routing.weights_TK.sum(-1)
    last = routing.weights_TK.masked_fill(routing.weights_TK == 0, 2).min(-1).values
    assert (chosen >= 0.6 - 1e-6).all()
    assert (chosen - last < 0.6).all()


def test_confidence_is_bounded_by_max_experts(make_router, make_logits):
    router = make_router(router="confidence", confidence_threshold=1.0, max_experts_per_token=3)
    assert router(make_logits()).used_TK.sum(-1).max() == 3
