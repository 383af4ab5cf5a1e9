import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ava_core.errors import AvaError
from ava_core.quantization.blockwise import fitting_block, quantize_blocks

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 70))
WEIGHTS = st.floats(-(2.0**60), 2.0**60, width=32)
MATRICES = SIZES.flatmap(lambda shape: arrays(np.float32, shape, elements=WEIGHTS))


def per_weight(scales_OJ: np.ndarray, block: int, inputs: int) -> np.ndarray:
    return np.repeat(scales_OJ, block, axis=1)[:, :inputs]


@settings(max_examples=150, deadline=None)
@given(weight=MATRICES, bits=st.sampled_from([4, 8]), block=st.sampled_from([16, 32, 64]))
def test_no_weight_is_off_by_more_than_its_rounding_or_clipping_allows(weight, bits, block):
    rounded = quantize_blocks(weight, bits, block)
    scale = per_weight(rounded.scales, rounded.block_size, weight.shape[1])
    # Half a step; one whole step for a weight that 4 bits clip; and what rounding the scale to bfloat16 takes.
    slack = (0.5 if bits == 8 else 1.0) + 2 ** (bits - 1) * 2**-8
    tiny = np.finfo(np.float32).tiny * 2 ** (bits + 8)
    assert (np.abs(rounded.dequantize() - weight) <= slack * scale + tiny).all() or not weight.any()
    top = 2 ** (bits - 1)
    assert rounded.integers.min() >= -top
    assert rounded.integers.max() <= top - 1


@settings(max_examples=100, deadline=None)
@given(weight=MATRICES, bits=st.sampled_from([4, 8]))
def test_scales_are_positive_and_need_no_more_than_bfloat16(weight, bits):
    scales = quantize_blocks(weight, bits, 32).scales
    assert (scales > 0).all()
    assert not (scales.view(np.uint32) & 0xFFFF).any()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), bits=st.sampled_from([4, 8]), exponent=st.integers(-60, 60))
def test_a_matrix_that_lies_on_a_grid_is_kept_exactly(data, bits, exponent):
    top = 2 ** (bits - 1) - 1
    integers = data.draw(arrays(np.int8, (3, 40), elements=st.integers(-top, top)))
    integers[:, [0, 35]] = top
    weight = integers.astype(np.float32) * np.float32(2.0**exponent)
    assert (quantize_blocks(weight, bits, 32).dequantize() == weight).all()


def test_four_bits_choose_a_scale_with_less_error_than_the_largest_weight_gives():
    weight = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    blocks = weight.reshape(64, 8, 32)
    plain = np.abs(blocks).max(-1, keepdims=True) / 7
    plain_error = np.square(np.rint(blocks / plain) * plain - blocks).mean()
    error = np.square(quantize_blocks(weight, 4, 32).dequantize() - weight).mean()
    assert error < 0.95 * plain_error


def test_a_block_of_zeros_stays_zero():
    weight = np.zeros((2, 64), np.float32)
    weight[1, :32] = 7
    assert (quantize_blocks(weight, 4, 32).dequantize() == weight).all()


def test_rows_are_rounded_alike_whatever_the_chunk(monkeypatch):
    weight = np.random.default_rng(0).standard_normal((50, 33)).astype(np.float32)
    whole = quantize_blocks(weight, 4, 16)
    monkeypatch.setattr("ava_core.quantization.blockwise.CHUNK_WEIGHTS", 100)
    parts = quantize_blocks(weight, 4, 16)
    assert (whole.integers == parts.integers).all()
    assert (whole.scales == parts.scales).all()


@pytest.mark.parametrize(("inputs", "block"), [(32, 32), (33, 64), (24, 32), (3, 16), (1000, 256)])
def test_a_short_row_has_one_block_that_holds_it(inputs, block):
    assert fitting_block(256, inputs) == block


def test_a_weight_that_is_not_finite_is_refused():
    weight = np.ones((2, 32), np.float32)
    weight[1, 3] = np.nan
    with pytest.raises(AvaError, match="not a finite number"):
        quantize_blocks(weight, 8, 32)


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_round_skewed_blocks_more_finely(bits):
    weight = 1 + np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    error = {
        symmetric: np.square(quantize_blocks(weight, bits, 32, symmetric=symmetric).dequantize() - weight).mean()
        for symmetric in (True, False)
    }
    assert error[False] < 0.75 * error[True]


@settings(max_examples=100, deadline=None)
@given(weight=MATRICES, bits=st.sampled_from([4, 8]))
def test_with_zero_points_integers_and_points_stay_in_range_and_a_zero_stays_zero(weight, bits):
    weight[:, 0] = 0
    rounded = quantize_blocks(weight, bits, 32, symmetric=False)
    top = 2 ** (bits - 1)
    for values in (rounded.integers, rounded.zero_points):
        assert values.min() >= -top
        assert values.max() <= top - 1
    assert not rounded.dequantize()[:, 0].any()


@pytest.mark.parametrize("symmetric", [True, False])
def test_experts_are_rounded_one_by_one(symmetric):
    weight = np.random.default_rng(0).standard_normal((3, 8, 64)).astype(np.float32)
    together = quantize_blocks(weight, 4, 32, symmetric=symmetric)
    assert together.shape == weight.shape
    for expert in range(3):
        alone = quantize_blocks(weight[expert], 4, 32, symmetric=symmetric)
        assert (together.dequantize()[expert] == alone.dequantize()).all()


def test_size_counts_integers_scales_and_zero_points():
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    assert quantize_blocks(weight, 4, 32).nbytes == 8 * 64 // 2 + 16 * 2
    assert quantize_blocks(weight, 4, 32, symmetric=False).nbytes == 8 * 64 // 2 + 16 * 2 + 16 // 2
