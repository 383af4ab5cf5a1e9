"""Counted FLOPs against PyTorch's own counter on models whose every product it sees, and against each other."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import active_parameters, products, training_flops_per_token
from benchmarks.peak import rates
from benchmarks.subjects import build_peer
from benchmarks.workload import Workload

SMALL = Workload(
    batch=2,
    length=16,
    vocab_size=96,
    hidden_size=64,
    layers=2,
    heads=4,
    key_value_heads=4,
    head_dim=16,
    experts=4,
    expert_size=48,
)


def counted(subject: str, work: Workload) -> int:
    """FLOPs of forward and backward, by PyTorch's counter; without the angles of the rotary embedding."""
    step = build_peer(subject, frozenset({"eager", "eager_attention"}), work)
    tokens = torch.randint(work.vocab_size, (work.batch, work.length))
    with FlopCounterMode(display=False) as counter:
        step.forward(tokens).loss.backward()
    return counter.get_total_flops() - 2 * work.length * (work.head_dim // 2)


@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_dense_model_costs_what_pytorch_counts(key_value_heads):
    work = dataclasses.replace(SMALL, key_value_heads=key_value_heads)
    expected = work.tokens * training_flops_per_token(work, work.experts_per_token, 0)
    assert counted("hf_llama_bf16", work) == expected


def test_mixture_costs_what_pytorch_counts():
    expected = SMALL.tokens * training_flops_per_token(SMALL, SMALL.experts_per_token, SMALL.experts)
    assert counted("hf_olmoe_bf16", SMALL) == expected


def test_causal_attention_counts_each_position_that_is_looked_at_once():
    positions = sum(query + 1 for query in range(SMALL.length))
    width = SMALL.heads * SMALL.head_dim
    # scores and values, a multiplication and an addition each, forward and twice that backward
    attention = SMALL.layers * 3 * 2 * 2 * width * positions / SMALL.length
    without = 6 * active_parameters(SMALL, 2, 4) + 6 * SMALL.hidden_size * SMALL.vocab_size
    assert training_flops_per_token(SMALL, 2, 4, causal=True) == without + attention


def test_zero_computation_experts_cost_their_mix_and_nothing_else():
    with_experts = active_parameters(SMALL, 1.5, SMALL.experts + 4, constant_experts=2)
    without = active_parameters(SMALL, 2, SMALL.experts)
    saved = 0.5 * 3 * SMALL.hidden_size * SMALL.expert_size
    added = SMALL.hidden_size * (4 + 2 * 3)  # router rows; two mixing rows and a vector per constant expert
    assert with_experts - without == SMALL.layers * (added - saved)


def test_products_of_the_peak_are_the_work_of_a_step_without_router_and_attention():
    whole = 6 * active_parameters(SMALL, SMALL.experts_per_token, 0) + 6 * SMALL.hidden_size * SMALL.vocab_size
    assert sum(product.count * product.flops for product in products(SMALL)) == SMALL.tokens * whole


def test_mean_peak_is_the_rate_of_all_products_one_after_the_other():
    measured = products(SMALL)
    equal_rate = [product.flops / 1e9 for product in measured]
    assert rates(measured, equal_rate) == pytest.approx({"mean": 1e9, "best": 1e9})
    slower_head = [s * (4 if p.name.startswith("head") else 1) for p, s in zip(measured, equal_rate, strict=True)]
    slowed = rates(measured, slower_head)
    assert slowed["best"] == pytest.approx(1e9)
    assert 0.25e9 < slowed["mean"] < 1e9
