import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.models.routing import collapsed_layers
from ava_core.models.routing.statistics import effective_experts, has_collapsed


def test_statistics_of_uniform_logits(make_router):
    statistics = make_router(num_experts_per_token=7)(torch.zeros(10, 7)).statistics
    torch.testing.assert_close(statistics.entropy, torch.tensor(7.0).log())
    torch.testing.assert_close(statistics.load_E, torch.ones(7))
    assert statistics.ffn_experts_per_token == 4
    assert statistics.load_cv == 0 and statistics.dead_experts == 0
    assert statistics.dropped_share == 0


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
def test_entropy_is_that_of_the_softmax_and_never_negative(make_router, make_logits, scale):
    x = make_logits(scale=scale)
    exact = torch.special.entr(x.double().softmax(-1)).sum(-1).mean()
    entropy = make_router()(x).statistics.entropy
    assert entropy >= 0
    torch.testing.assert_close(entropy.double(), exact, rtol=1e-4, atol=1e-5)


def test_collapse_shows_as_dead_experts_and_uneven_load(make_router):
    logits = torch.zeros(100, 7)
    logits[:, :2] = 50.0
    statistics = make_router(num_experts_per_token=2)(logits).statistics
    assert statistics.dead_experts == 5
    torch.testing.assert_close(statistics.load_cv, torch.tensor((5 / 2) ** 0.5))  # two loads of 1, five of 0
    torch.testing.assert_close(statistics.effective_experts, torch.tensor(2.0))
    assert statistics.collapsed


def test_collapse_of_one_layer_shows_by_name_beside_balanced_ones(make_router, make_logits):
    router = make_router(num_experts_per_token=2)
    skewed = make_logits(200)
    skewed[:, 3:5] += 20
    statistics = [router(x).statistics for x in (make_logits(200), skewed, make_logits(200, seed=1), skewed)]
    assert collapsed_layers(statistics) == [1, 3]


@settings(max_examples=30, deadline=None)
@given(experts=st.integers(2, 16), k=st.integers(1, 16))
def test_even_loads_are_never_a_collapse_and_the_same_k_of_many_always_are(experts, k):
    k = min(k, experts)
    even_E = torch.full((experts,), k / experts)
    torch.testing.assert_close(effective_experts(even_E), torch.tensor(float(experts)))
    assert not has_collapsed(even_E)
    same_E = (torch.arange(experts) < k).float()
    torch.testing.assert_close(effective_experts(same_E), torch.tensor(float(k)))
    assert has_collapsed(same_E) == (k < experts)


def test_collapse_is_told_for_several_layers_at_once():
    load_LE = torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 0.0, 0.0], [0.97, 0.97, 0.03, 0.03]])
    assert has_collapsed(load_LE).tolist() == [False, True, True]


def test_loads_that_tau_wants_uneven_are_no_collapse():
    # tau = 0.1: eight FFN experts with a tenth of the load of each of four zero-computation experts
    assert not has_collapsed(torch.tensor([0.1] * 8 + [1.0] * 4) * 2 / 4.8)


def test_no_token_at_all_makes_no_nan(make_router, make_logits):
    statistics = make_router(capacity_factor=1.0).train()(make_logits(5), torch.zeros(5, dtype=torch.bool)).statistics
    for name in ("load_E", "mean_probability_E", "ffn_experts_per_token", "entropy", "dropped_share"):
        assert (getattr(statistics, name) == 0).all()
    assert math.isfinite(statistics.effective_experts)


def test_statistics_hold_no_gradient(make_router, make_logits):
    statistics = make_router()(make_logits().requires_grad_()).statistics
    for name in ("load_E", "mean_probability_E", "ffn_experts_per_token", "entropy", "dropped_share"):
        assert not getattr(statistics, name).requires_grad
