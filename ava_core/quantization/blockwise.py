"""Block-wise round-to-nearest quantisation of weight matrices.

    O  output features      I  input features      J  blocks of B neighbouring inputs, the last one may be short

A block's weights are about (integer - zero point) * scale, with a zero point of 0 if the rounding is symmetric. Scales
are bfloat16, rounded before the integers are chosen, so that their own rounding costs next to nothing; bfloat16 has
float32's range, no block is too small for it.
"""

from __future__ import annotations

import numpy as np

from ava_core.errors import AvaError
from ava_core.onnx.block_weights import BlockWeights

MIN_BLOCK = 16
CHUNK_WEIGHTS = 2**24
"""Weights that are rounded at once: bounds the memory for temporaries."""


def fitting_block(block_size: int, inputs: int) -> int:
    """`block_size`, or the smallest power of two that holds a whole shorter row; a block never spans two rows."""
    return min(block_size, max(MIN_BLOCK, 1 << (inputs - 1).bit_length()))


def quantize_blocks(weight: np.ndarray, bits: int, block_size: int, *, symmetric: bool = True) -> BlockWeights:
    """Round float32 matrices (O, I) or (N, O, I) to the nearest of 2^bits levels per block.

    Asymmetric rounding, with a zero point, spreads the levels from a block's least weight to its largest. Symmetric
    rounding maps a block's largest magnitude to the highest level, 2^(bits-1) - 1; with 4 bits or fewer also to half a
    level and a level above it, which clips that one weight, and takes the scale with the least squared error.

    Raises:
        AvaError: a weight is not finite.
    """
    if not np.isfinite(weight).all():
        raise AvaError(
            "a weight is not a finite number: the model can't be quantised; train it again with a lower learning rate"
        )
    flat_OI = weight.reshape(-1, weight.shape[-1])
    block = fitting_block(block_size, flat_OI.shape[1])
    rows = max(1, CHUNK_WEIGHTS // flat_OI.shape[1])
    starts = range(0, len(flat_OI), rows)
    method = _round_symmetric if symmetric else _round_with_zero_point
    parts = [method(flat_OI[start : start + rows], bits, block) for start in starts]
    integers, scales, points = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    leading = weight.shape[:-1]
    return BlockWeights(
        integers=integers.reshape(weight.shape),
        scales=scales.reshape(*leading, -1),
        zero_points=None if symmetric else points.reshape(*leading, -1),
        bits=bits,
        block_size=block,
    )


Rounded = tuple[np.ndarray, np.ndarray, np.ndarray]


def _blocks(weight_OI: np.ndarray, block: int) -> np.ndarray:
    """The rows in blocks (O, J, B), a short last one filled with zeros."""
    outputs, inputs = weight_OI.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block), np.float32)
    padded[:, :inputs] = weight_OI
    return padded.reshape(outputs, blocks, block)


def _round_symmetric(weight_OI: np.ndarray, bits: int, block: int) -> Rounded:
    """Integers, scales, and zero points, which are 0."""
    weight_OJB = _blocks(weight_OI, block)
    magnitude_OJ = np.abs(weight_OJB).max(axis=-1)
    top = 2 ** (bits - 1)
    best = None
    for level in (top - 1, top - 0.5, top) if bits <= 4 else (top - 1,):
        scales = _bfloat16(magnitude_OJ / level)
        scales[scales == 0] = 1  # a block of zeros, or of weights too small for bfloat16: all integers are 0
        integers = np.clip(np.rint(weight_OJB / scales[..., None]), -top, top - 1)
        error_OJ = np.square(integers * scales[..., None] - weight_OJB).sum(axis=-1)
        if best is None:
            best = (integers, scales, error_OJ)
        else:
            better = error_OJ < best[2]
            best = (
                np.where(better[..., None], integers, best[0]),
                np.where(better, scales, best[1]),
                np.where(better, error_OJ, best[2]),
            )
    assert best is not None
    integers = best[0].astype(np.int8).reshape(len(weight_OI), -1)[:, : weight_OI.shape[1]]
    return integers, best[1], np.zeros(best[1].shape, np.int8)


def _round_with_zero_point(weight_OI: np.ndarray, bits: int, block: int) -> Rounded:
    """Integers, scales and zero points; 0 is always a level, so that the filling of a short block stays 0."""
    weight_OJB = _blocks(weight_OI, block)
    low_OJ, high_OJ = np.minimum(weight_OJB.min(axis=-1), 0), np.maximum(weight_OJB.max(axis=-1), 0)
    top = 2 ** (bits - 1)
    scales = _bfloat16((high_OJ - low_OJ) / (2 * top - 1))
    scales[scales == 0] = 1
    points = np.clip(np.rint(-low_OJ / scales) - top, -top, top - 1)
    integers = np.clip(np.rint(weight_OJB / scales[..., None]) + points[..., None], -top, top - 1)
    integers = integers.astype(np.int8).reshape(len(weight_OI), -1)[:, : weight_OI.shape[1]]
    return integers, scales, points.astype(np.int8)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest values that bfloat16 can hold, ties to even, as float32."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
