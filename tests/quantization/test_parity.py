"""Parity on a trained model: sound exports pass, and planted faults show."""

import copy
import math
import re

import numpy as np
import pytest
import torch

from ava_core.config.quantize import QuantizeConfig
from ava_core.data.shards import ShardedSplit
from ava_core.errors import ParityError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.quantization.bounds import EXPORT_ERROR, SELF_ERROR, require_parity
from ava_core.quantization.consistency import cached_error, padded_error
from ava_core.quantization.parity import measure_parity


@pytest.fixture(scope="module")
def trained(tiny_model) -> EnhancedMoEForCausalLM:
    return EnhancedMoEForCausalLM.from_pretrained(tiny_model).eval()


@pytest.fixture
def parity(trained, tiny_shards):
    """Parity of a candidate with the trained model on some validation text."""
    split = ShardedSplit.open(tiny_shards, "validation")
    return lambda candidate: measure_parity(trained, candidate, split, sequence_length=64, sequences=6)


def test_a_model_compared_with_itself_has_no_error_at_all(trained, parity):
    found = parity(trained)
    assert (found.max_abs_error, found.mean_abs_error, found.bits_per_byte_increase) == (0, 0, 0)
    assert (found.top1_agreement, found.expert_agreement, found.expert_slot_agreement) == (1, 1, 1)
    assert found.tokens == 6 * 64


def test_the_float_export_differs_by_rounding_only(trained, parity, export):
    found = parity(export(trained))
    assert found.mean_abs_error < EXPORT_ERROR / 50
    assert found.expert_agreement > 0.99


def test_eight_bits_lose_less_than_four_and_both_little(trained, parity, export):
    eight, four = parity(export(trained, 8)), parity(export(trained, 4))
    assert eight.max_abs_error < four.max_abs_error
    assert abs(eight.bits_per_byte_increase) < 0.002
    assert abs(four.bits_per_byte_increase) < 0.05
    assert eight.expert_agreement > max(0.97, four.expert_agreement)
    assert eight.top1_agreement > 0.97


def swap_experts(moe):
    moe.experts.down_proj[[0, 1]] = moe.experts.down_proj[[1, 0]]


def drop_an_expert(moe):
    moe.experts.down_proj[moe.busiest] = 0


def swap_gate_and_up(moe):
    gate_up = moe.experts.gate_up_proj
    gate_up[0] = gate_up[0].roll(gate_up.shape[1] // 2, dims=0)


def swap_router_rows(moe):
    moe.gate.weight[[0, 1]] = moe.gate.weight[[1, 0]]


def lose_the_gating_residual(moe):
    moe.gate.residual_weight.zero_()


def scale_a_constant(moe):
    moe.zero_computation.constants *= 4


@pytest.mark.parametrize(
    "plant",
    [swap_experts, drop_an_expert, swap_gate_and_up, swap_router_rows, lose_the_gating_residual, scale_a_constant],
)
@pytest.mark.parametrize("portable", [True, False])
def test_a_fault_in_one_layer_breaks_the_bound_of_the_unrounded_graph(
    trained, tiny_shards, parity, export, plant, portable
):
    faulty = copy.deepcopy(trained)
    with torch.no_grad():
        moe = faulty.model.layers[1].moe
        tokens = torch.from_numpy(ShardedSplit.open(tiny_shards, "validation").tokens[:256].astype("int64"))[None]
        choices = trained(tokens, output_router_logits=True).router_choices[1]
        moe.busiest = int(choices[:, : trained.config.num_ffn_experts].sum(0).argmax())
        plant(moe)
    sound, found = parity(export(trained, portable=portable)), parity(export(faulty, portable=portable))
    assert sound.mean_abs_error < EXPORT_ERROR < found.mean_abs_error
    if plant in (swap_router_rows, lose_the_gating_residual):
        assert found.expert_agreement < sound.expert_agreement - 0.05
        assert found.expert_slot_agreement < sound.expert_slot_agreement
        assert found.expert_agreement <= found.expert_slot_agreement


GOOD = {
    "export_mean_abs_error": 1e-6,
    "cached_mean_abs_error": 1e-4,
    "padded_mean_abs_error": 0.0,
    "mean_abs_error": 0.1,
    "increase_percent": 0.1,
    "expert_agreement": 0.995,
    "top1_agreement": 0.95,
}


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            {"expert_agreement": 0.98},
            [r"parity_expert_agreement = 0.98: must be >= 0.99 \(quantize.int8.min_ex"],
        ),
        ({"increase_percent": 0.75}, [r"parity_increase_percent = 0.75: must be <= 0.5 .*, is 0.25 more"]),
        ({"increase_percent": float("nan")}, ["parity_increase_percent = nan"]),
        (
            {"top1_agreement": 0.5, "cached_mean_abs_error": 0.2},
            ["parity_cached_mean_abs_error", "parity_top1_agreement"],
        ),
        ({"long_context_increase_percent": 3.0}, ["parity_long_context_increase_percent = 3: must be <= 0.5"]),
        ({"export_mean_abs_error": 0.01}, ["parity_export_mean_abs_error = 0.01: must be <= 0.001"]),
    ],
)
def test_every_broken_bound_is_named_with_its_value_and_the_excess(change, messages):
    require_parity(GOOD, "int8", QuantizeConfig())
    with pytest.raises(ParityError) as caught:
        require_parity({**GOOD, **change}, "int8", QuantizeConfig())
    lines = str(caught.value).split("\n")
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert re.search(message, line), line


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize("length", [1, 2, 9, 60, 128])
def test_the_cache_and_padding_change_the_logits_by_rounding_only(trained, tiny_shards, export, portable, length):
    split = ShardedSplit.open(tiny_shards, "validation")
    model = export(trained, 4, level=4, portable=portable)
    assert cached_error(model, split, length) < SELF_ERROR / 2
    assert padded_error(model, split, length) < SELF_ERROR / 2


def test_angles_that_follow_the_length_are_no_fault_of_the_cache(trained, tiny_shards, export):
    split, model = ShardedSplit.open(tiny_shards, "validation"), copy.deepcopy(trained)
    rope = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 16}
    model.config.rope_parameters = {**rope, "rope_theta": model.config.rope_theta}
    exported = export(model, portable=True)
    assert cached_error(exported, split, 64) < SELF_ERROR / 2
    assert padded_error(exported, split, 64) < SELF_ERROR / 2


def forget_the_first_positions(tokens_BS, cache, logits):
    for buffer in cache.buffers:
        buffer[:, :, :16] = 0


def exchange_two_rows(tokens_BS, cache, logits):
    if cache.rows > 1:
        for buffer in cache.buffers:
            buffer[[0, 1]] = buffer[[1, 0]]


def answer_single_tokens_for_the_next_row(tokens_BS, cache, logits):
    if tokens_BS.shape[1] == 1 and logits.ndim == 2:
        logits[:] = np.roll(logits, 1, axis=0)


@pytest.mark.parametrize(
    "plant", [forget_the_first_positions, exchange_two_rows, answer_single_tokens_for_the_next_row]
)
def test_a_fault_in_the_cache_breaks_the_bound(trained, tiny_shards, export, monkeypatch, plant):
    split, model = ShardedSplit.open(tiny_shards, "validation"), export(trained)
    real = model.decoder.run

    def faulty(tokens_BS, cache, **arguments):
        logits = real(tokens_BS, cache, **arguments)
        plant(tokens_BS, cache, logits)
        return logits

    monkeypatch.setattr(model.decoder, "run", faulty)
    assert cached_error(model, split, 60) > SELF_ERROR


def test_rows_that_read_each_others_text_break_the_bound(trained, tiny_shards, export, monkeypatch):
    split, model = ShardedSplit.open(tiny_shards, "validation"), export(trained)
    real = model.decoder.run

    def faulty(tokens_BS, cache, **arguments):
        shortest = int(np.min(arguments["new_tokens_B"]))
        tokens_BS[:, :shortest] = tokens_BS[:1, :shortest]
        return real(tokens_BS, cache, **arguments)

    monkeypatch.setattr(model.decoder, "run", faulty)
    assert padded_error(model, split, 60) > SELF_ERROR


def test_logits_that_are_no_numbers_are_no_small_error(trained, parity):
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    assert math.isnan(parity(broken).max_abs_error)


def test_the_bits_per_byte_are_those_of_the_text(trained, tiny_shards):
    """Against a candidate that knows nothing: its cross-entropy is ln V whatever the text."""
    split = ShardedSplit.open(tiny_shards, "validation")
    ignorant = copy.deepcopy(trained)
    with torch.no_grad():
        ignorant.model.norm.weight.zero_()
    found = measure_parity(trained, ignorant, split, sequence_length=64, sequences=10**6)
    stream = torch.from_numpy(split.tokens.astype("int64"))
    uniform = len(stream) * math.log(trained.config.vocab_size)
    inputs = torch.cat((torch.tensor([split.boundary_token_id]), stream[:-1]))
    with torch.no_grad():
        nats = sum(
            torch.nn.functional.cross_entropy(trained(part[None]).logits[0], target, reduction="sum").item()
            for part, target in zip(inputs.split(64), stream.split(64), strict=True)
        )
    assert found.tokens == len(stream)
    assert found.bits_per_byte_increase == pytest.approx((uniform - nats) / math.log(2) / split.num_bytes, rel=1e-5)
