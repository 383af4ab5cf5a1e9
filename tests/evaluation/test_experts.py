"""Utilisation figures against values in closed form."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.evaluation.experts import LayerCounts, describe_layer, expert_kinds, summarise
from ava_core.models import EnhancedMoEConfig


def layer(chosen, tokens=100, num_ffn_experts=2, router_entropy=0.0):
    return describe_layer(0, LayerCounts(chosen=chosen, router_entropy=router_entropy), tokens, num_ffn_experts)


def test_even_load_is_known():
    figures = layer([50, 50, 50, 50], router_entropy=70.0)
    assert figures.load == [0.5] * 4
    assert figures.load_cv == 0
    assert figures.entropy == pytest.approx(1)
    assert figures.experts_per_token == 2
    assert figures.ffn_experts_per_token == 1
    assert figures.router_entropy == pytest.approx(0.7)
    assert figures.dead_experts == []


def test_collapse_onto_one_expert_is_known():
    figures = layer([100, 0, 0, 0])
    assert figures.load_cv == pytest.approx(math.sqrt(3))
    assert figures.entropy == 0
    assert figures.dead_experts == [1, 2, 3]


def test_layer_whose_tokens_all_skip_the_ffn_experts_has_finite_figures():
    figures = layer([0, 0, 100, 100])
    assert figures.ffn_load_cv == 0
    assert figures.ffn_experts_per_token == 0
    assert figures.dead_experts == [0, 1]


def test_dead_is_below_a_hundredth_of_an_even_share():
    # 4 experts, 40,000 assignments: an even share is 10,000
    assert layer([100, 19_900, 10_000, 10_000], tokens=20_000).dead_experts == []
    assert layer([99, 19_901, 10_000, 10_000], tokens=20_000).dead_experts == [0]


def test_collapse_in_one_layer_shows_though_the_others_are_even():
    even, collapsed = layer([50, 50, 50, 50]), layer([100, 0, 100, 0])
    figures = summarise([even, even, even, collapsed])
    assert figures["dead_experts"] == 2
    assert figures["expert_load_cv"] == pytest.approx(0.25)


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=20).filter(sum))
def test_figures_stay_in_their_ranges(chosen):
    figures = layer(chosen, tokens=1000)
    assert 0 <= figures.entropy <= 1 + 1e-12
    assert 0 <= figures.load_cv <= math.sqrt(len(chosen) - 1) + 1e-9
    assert sum(figures.load) == pytest.approx(figures.experts_per_token)


def test_kinds_follow_the_order_of_the_experts():
    config = EnhancedMoEConfig(num_ffn_experts=2, num_zero_experts=1, num_copy_experts=0, num_constant_experts=2)
    assert expert_kinds(config) == ["ffn", "ffn", "zero", "constant", "constant"]
