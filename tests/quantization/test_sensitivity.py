"""The damage of rounding, measured on the whole model."""

import numpy as np
import pytest
import torch

from ava_core.quantization.blockwise import quantize_blocks
from ava_core.quantization.plan import Format, groups_of
from ava_core.quantization.sensitivity import measure_damages, rounded_weights
from ava_core.steps.schemes import HALF

FOUR, EIGHT, FLOAT16 = Format(bits=4, block_size=32), Format(bits=8, block_size=32), Format(bits=HALF)
TOKENS_BS = torch.from_numpy(np.random.default_rng(0).integers(0, 101, (2, 24)))


def rounding(weight, form):
    return quantize_blocks(weight, form.bits, form.block_size)


def layers_experts(model):
    return [group for group in groups_of(model) if group.experts]


def test_fewer_bits_do_more_damage_and_float16_counts_as_none(make_model):
    model = make_model()
    options = {group: [FOUR, EIGHT, FLOAT16] for group in groups_of(model)}
    damages = measure_damages(model, options, rounding, TOKENS_BS)
    for group in options:
        four, eight, half = (damages[group.name, form] for form in (FOUR, EIGHT, FLOAT16))
        assert four.divergence > eight.divergence > half.divergence == 0
        assert four.routing >= eight.routing >= half.routing == 0


def test_a_layer_with_outliers_is_the_most_sensitive(make_model):
    model = make_model()
    groups = layers_experts(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in groups[1].matrices:
            parameters[name][..., ::32] *= 20  # one weight of each block takes the block's range
    damages = measure_damages(model, {group: [FOUR] for group in groups}, rounding, TOKENS_BS)
    assert max(groups, key=lambda group: damages[group.name, FOUR].divergence) == groups[1]


def test_routing_of_earlier_layers_is_not_touched_by_the_last_experts(make_model):
    model = make_model()
    *_, last = layers_experts(model)
    assert measure_damages(model, {last: [FOUR]}, rounding, TOKENS_BS)[last.name, FOUR].routing == 0


def test_measuring_leaves_the_model_as_it_was_and_gives_the_same_twice(make_model):
    model = make_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    options = {group: [FOUR, EIGHT] for group in layers_experts(model)}
    told: list[int] = []
    first = measure_damages(model, options, rounding, TOKENS_BS, told.append)
    assert told == [1, 2, 3, 4, 5, 6]
    assert measure_damages(model, options, rounding, TOKENS_BS) == first
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_weights_return_when_the_block_fails(make_model):
    model = make_model()
    name = layers_experts(model)[0].matrices[0]
    weight = dict(model.named_parameters())[name]
    before = weight.clone()
    rounded = rounding(before.detach().numpy(), FOUR)
    with pytest.raises(RuntimeError, match="inside"), rounded_weights(model, {name: rounded}):
        assert np.array_equal(weight.detach().numpy(), rounded.dequantize())
        raise RuntimeError("inside")
    assert torch.equal(weight, before)
