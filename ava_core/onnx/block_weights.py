"""Block-wise quantised weight matrices, as the graphs hold them.

    O  output features      I  input features      J  blocks of B neighbouring inputs, the last one may be short

A block's weights are about (integer - zero point) * scale, with a zero point of 0 if the rounding is symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """A quantised matrix, or the matrices of N experts.

    Attributes:
        integers: int8 (O, I) or (N, O, I), within [-2^(bits-1), 2^(bits-1) - 1].
        scales: float32 values that bfloat16 can hold, (O, J) or (N, O, J).
        zero_points: int8 in the integers' range, one per scale; None: all 0.
        bits: 2, 4 or 8.
        block_size: B.
    """

    integers: np.ndarray
    scales: np.ndarray
    bits: int
    block_size: int
    zero_points: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(O, I) or (N, O, I), of the dequantised matrix."""
        return self.integers.shape

    @property
    def nbytes(self) -> int:
        """Bytes of packed integers, bfloat16 scales and packed zero points in a file."""
        points = 0 if self.zero_points is None else self.zero_points.size * self.bits // 8
        return self.integers.size * self.bits // 8 + self.scales.size * 2 + points

    def dequantize(self) -> np.ndarray:
        """(integer - zero point) * scale, float32."""
        inputs = self.integers.shape[-1]
        shifted = self.integers.astype(np.float32)
        if self.zero_points is not None:
            shifted -= np.repeat(self.zero_points, self.block_size, axis=-1)[..., :inputs]
        return shifted * np.repeat(self.scales, self.block_size, axis=-1)[..., :inputs]


Stored = BlockWeights | np.ndarray
"""A matrix as a file holds it: rounded to integers, or as float16."""
