"""Block-wise rounding of weight matrices to signed integers.

    O  output features      I  input features      J  blocks of B neighbouring inputs, the last one may be short

A block's weights are about integer * scale. Scales are bfloat16, rounded before the integers are chosen, so that
their own rounding costs next to nothing; bfloat16 has float32's range, no block is too small for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ava_core.errors import AvaError

BITS = {"int8": 8, "int4": 4}
"""Bits of one weight, by name of the scheme."""
MIN_BLOCK = 16
CHUNK_WEIGHTS = 2**24
"""Weights that are rounded at once: bounds the memory for temporaries."""


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """A rounded matrix.

    Attributes:
        integers_OI: int8, within [-2^(bits-1), 2^(bits-1) - 1].
        scales_OJ: float32 values that bfloat16 can hold.
        bits: 4 or 8.
        block_size: B.
    """

    integers_OI: np.ndarray
    scales_OJ: np.ndarray
    bits: int
    block_size: int

    def dequantize(self) -> np.ndarray:
        """The matrix (O, I) that the integers stand for, float32."""
        inputs = self.integers_OI.shape[1]
        return self.integers_OI * np.repeat(self.scales_OJ, self.block_size, axis=1)[:, :inputs]


def fitting_block(block_size: int, inputs: int) -> int:
    """`block_size`, or the smallest power of two that holds a whole shorter row; a block never spans two rows."""
    return min(block_size, max(MIN_BLOCK, 1 << (inputs - 1).bit_length()))


def quantize_blocks(weight_OI: np.ndarray, bits: int, block_size: int) -> BlockWeights:
    """Round a float32 matrix to the nearest of 2^bits levels per block.

    The scale of a block is the one of a few candidates with the least squared error. A candidate makes the
    largest magnitude an end of the range or a little less: with 4 bits it pays to clip that one weight.

    Raises:
        AvaError: a weight is not finite.
    """
    if not np.isfinite(weight_OI).all():
        raise AvaError(
            "a weight is not a finite number: the model can't be quantised; train it again with a lower learning rate"
        )
    block = fitting_block(block_size, weight_OI.shape[1])
    rows = max(1, CHUNK_WEIGHTS // weight_OI.shape[1])
    parts = [_round(weight_OI[start : start + rows], bits, block) for start in range(0, len(weight_OI), rows)]
    integers, scales = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return BlockWeights(integers_OI=integers, scales_OJ=scales, bits=bits, block_size=block)


def _round(weight_OI: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    outputs, inputs = weight_OI.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block), np.float32)
    padded[:, :inputs] = weight_OI
    weight_OJB = padded.reshape(outputs, blocks, block)
    magnitude_OJ = np.abs(weight_OJB).max(axis=-1)

    top = 2 ** (bits - 1)
    best = None
    for level in (top - 1, top - 0.5, top) if bits == 4 else (top - 1,):
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
    return best[0].astype(np.int8).reshape(outputs, -1)[:, :inputs], best[1]


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest values that bfloat16 can hold, ties to even, as float32."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
