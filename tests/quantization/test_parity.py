"""Parity on a trained model: sound exports pass, and planted faults show."""

import copy
import math

import numpy as np
import onnx
import pytest
import torch

from ava_core.data.shards import ShardedSplit
from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.quantization.graph import GRAPH_FILE
from ava_core.quantization.parity import measure_parity
from ava_core.quantization.quantize import EXPORT_TOLERANCE, require_same_model
from ava_core.quantization.runtime import load_onnx


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
    require_same_model(found)
    assert found.mean_abs_error < EXPORT_TOLERANCE / 50
    assert found.expert_agreement > 0.99


def test_eight_bits_lose_less_than_four_and_both_little(trained, parity, export):
    eight, four = parity(export(trained, "int8")), parity(export(trained, "int4"))
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
@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_a_fault_in_one_layer_shows_in_the_figures(trained, tiny_shards, parity, export, plant, scheme):
    faulty = copy.deepcopy(trained)
    with torch.no_grad():
        moe = faulty.model.layers[1].moe
        tokens = torch.from_numpy(ShardedSplit.open(tiny_shards, "validation").tokens[:256].astype("int64"))[None]
        choices = trained(tokens, output_router_logits=True).router_choices[1]
        moe.busiest = int(choices[:, : trained.config.num_ffn_experts].sum(0).argmax())
        plant(moe)
    sound, found = parity(export(trained, scheme)), parity(export(faulty, scheme))
    assert found.mean_abs_error > 3 * sound.mean_abs_error
    assert found.max_abs_error >= sound.max_abs_error
    with pytest.raises(AvaError, match="doesn't compute this model"):
        require_same_model(found)
    if plant in (swap_router_rows, lose_the_gating_residual):
        assert found.expert_agreement < sound.expert_agreement - 0.05
        assert found.expert_slot_agreement < sound.expert_slot_agreement
        assert found.expert_agreement <= found.expert_slot_agreement


def test_a_wrong_scale_in_the_file_shows_in_the_figures(trained, parity, export):
    sound = parity(export(trained, "int8"))
    model = onnx.load(export.folder / GRAPH_FILE, load_external_data=False)
    name = "model.layers.1.moe.experts.down_proj.scales"
    (scales,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    doubled = np.frombuffer(scales.raw_data, "<u2") + np.uint16(0x80)  # one more in the exponent of a bfloat16
    scales.raw_data = doubled.tobytes()
    (export.folder / GRAPH_FILE).write_bytes(model.SerializeToString())
    found = parity(load_onnx(export.folder, threads=1))
    assert found.mean_abs_error > 3 * sound.mean_abs_error
    assert found.top1_agreement < sound.top1_agreement


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


def test_a_graph_that_gives_no_numbers_is_refused(trained, parity):
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(AvaError, match="doesn't compute this model"):
        require_same_model(parity(broken))
