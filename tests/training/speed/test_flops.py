"""Counted FLOPs against PyTorch's own counter on models whose every product it sees, and against each other."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ava_core.config.model import ModelConfig
from ava_core.config.train import TrainConfig
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.speed.flops import (
    multiplied_entries,
    products,
    step_shapes,
    training_flops_per_token,
    utilization,
)
from ava_core.training.speed.peak import LEAST_TOKENS, measure_peak, rates
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
    without = 6 * multiplied_entries(SMALL, 2, 4) + 6 * SMALL.hidden_size * SMALL.vocab_size
    assert training_flops_per_token(SMALL, 2, 4, causal=True) == without + attention


def test_zero_computation_experts_cost_their_mix_and_nothing_else():
    with_experts = multiplied_entries(SMALL, 1.5, SMALL.experts + 4, constant_experts=2)
    without = multiplied_entries(SMALL, 2, SMALL.experts)
    saved = 0.5 * 3 * SMALL.hidden_size * SMALL.expert_size
    added = SMALL.hidden_size * (4 + 2 * 3)  # router rows; two mixing rows and a vector per constant expert
    assert with_experts - without == SMALL.layers * (added - saved)


def test_products_of_the_peak_are_the_work_of_a_step_without_router_and_attention():
    whole = 6 * multiplied_entries(SMALL, SMALL.experts_per_token, 0) + 6 * SMALL.hidden_size * SMALL.vocab_size
    assert sum(product.count * product.flops for product in products(SMALL)) == SMALL.tokens * whole


def test_mean_peak_is_the_rate_of_all_products_one_after_the_other():
    measured = products(SMALL)
    equal_rate = [product.flops / 1e9 for product in measured]
    assert rates(measured, equal_rate) == pytest.approx({"mean": 1e9, "best": 1e9})
    slower_head = [s * (4 if p.name.startswith("head") else 1) for p, s in zip(measured, equal_rate, strict=True)]
    slowed = rates(measured, slower_head)
    assert slowed["best"] == pytest.approx(1e9)
    assert 0.25e9 < slowed["mean"] < 1e9


def configured(**changes):
    """A model with the shapes of `SMALL`, and a training of it."""
    model = ModelConfig(
        hidden_size=64,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_ffn_experts=4,
        expert_intermediate_size=48,
        gating_residuals=False,
        **changes,
    )
    train = TrainConfig(micro_batch_size=2, global_batch_size=2, sequence_length=16, steps=2, warmup_steps=0)
    return model, train


def test_shapes_of_a_configuration_are_those_of_the_workload_with_the_same_sizes():
    shapes = step_shapes(*configured(), 96)
    names = [field.name for field in dataclasses.fields(shapes)]
    assert {name: getattr(shapes, name) for name in names} == {name: getattr(SMALL, name) for name in names}


def test_utilisation_is_the_work_of_the_configured_model_over_the_peak():
    """Counted by PyTorch on the model itself, but for its fused attention, which the counter doesn't see."""
    model_config, train = configured(
        num_experts_per_token=4, num_zero_experts=0, num_copy_experts=0, num_constant_experts=0, num_shared_experts=1
    )
    config = {**model_config.model_dump(), "experts_implementation": "dense"}
    model = EnhancedMoEForCausalLM(EnhancedMoEConfig(**config, vocab_size=96))
    tokens = torch.randint(2, 96, (2, 16))
    with FlopCounterMode(display=False) as counter:
        model(tokens, labels=tokens).loss.backward()
    attention = 12 * SMALL.layers * SMALL.heads * SMALL.head_dim * SMALL.length * tokens.numel()
    rows = [{"step": 1, "ffn_experts_per_token": 4.0}]
    per_second, peak = 10.0, 1e6
    per_token = utilization(model_config, train, 96, rows, per_second, peak) * peak / per_second
    assert per_token * tokens.numel() == pytest.approx(counter.get_total_flops() + attention)


def test_shorter_sequences_and_fewer_experts_are_less_work():
    model, train = configured()
    full, fewer, shorter = (
        utilization(
            model, train, 96, [{"step": 1, "ffn_experts_per_token": chosen, "sequence_length": length}], 1.0, 1.0
        )
        for chosen, length in ((2.0, 16.0), (1.0, 16.0), (2.0, 8.0))
    )
    assert full - fewer == 6 * SMALL.layers * 3 * SMALL.hidden_size * SMALL.expert_size
    assert full - shorter == 12 * SMALL.layers * SMALL.heads * SMALL.head_dim * 8
    assert utilization(model, train, 96, [], 1.0, 0.0) == 0.0


def test_peak_is_measured_without_touching_the_random_numbers():
    model, train = configured()
    before = torch.get_rng_state()
    assert measure_peak(model, train, 96, torch.device("cpu"), seconds=0.0) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_micro_batch_of_much_work_is_measured_with_fewer_tokens(monkeypatch):
    from ava_core.training.speed import peak

    seen = []
    monkeypatch.setattr(peak, "run", lambda given: seen.append(given[0].shape[0] * given[0].shape[1]) or 1.0)
    monkeypatch.setitem(peak.PASS_FLOPS, "cpu", 1.0)
    model, train = configured()
    large = train.model_copy(update={"micro_batch_size": 512})
    measure_peak(model, large, 96, torch.device("cpu"), seconds=0.0)
    assert max(seen) == LEAST_TOKENS * 96  # rows of the head's gradient of its input


def test_window_is_less_work_in_the_layers_that_have_it():
    full, some = (
        utilization(configured(**fields)[0], configured()[1], 96, [], 1.0, 1.0)
        for fields in ({}, {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]})
    )
    sliding = SMALL.layers // 2
    assert full - some == 12 * sliding * SMALL.heads * SMALL.head_dim * (SMALL.length - 5)
