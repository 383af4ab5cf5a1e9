"""Quantised weights in the byte layout that ONNX Runtime's operators read.

MatMulNBits, QMoE and GatherBlockQuantized hold unsigned integers, the signed ones plus 2^(bits - 1), packed with the
first of a byte in its low bits; see https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ava_core.errors import ConfigError
from ava_core.onnx.block_weights import BlockWeights

BLOCK_SIZES = (16, 32, 64, 128, 256)
Weights = TypeVar("Weights", np.ndarray, BlockWeights)


def require_fit(name: str, weights: BlockWeights) -> None:
    """Refuse a matrix whose rows aren't whole blocks, for operators that know no shorter last block.

    Raises:
        ConfigError: the block size doesn't divide the row.
    """
    width = weights.integers.shape[-1]
    if width % weights.block_size:
        fitting = [str(size) for size in BLOCK_SIZES if width % size == 0]
        remedy = f"must be one of {', '.join(fitting)}" if fitting else "none fits: set quantize.portable = true"
        raise ConfigError(
            f"quantize.block_size = {weights.block_size}: doesn't divide the {width} inputs of {name}: {remedy}"
        )


def pack(weights: BlockWeights, *, whole_blocks: bool = False) -> np.ndarray:
    """The integers as bytes, uint8 (..., I * bits / 8).

    With `whole_blocks` a short last block is filled with zeros of the weights first.
    """
    integers = weights.integers
    if whole_blocks and (rest := -integers.shape[-1] % weights.block_size):
        integers = np.pad(integers, [(0, 0)] * (integers.ndim - 1) + [(0, rest)])
    return _pack(integers, weights.bits)


def pack_zero_points(weights: BlockWeights) -> np.ndarray:
    """The zero points as bytes, uint8 (..., ceil(J * bits / 8))."""
    assert weights.zero_points is not None
    per_byte = 8 // weights.bits
    points = weights.zero_points
    return _pack(np.pad(points, [(0, 0)] * (points.ndim - 1) + [(0, -points.shape[-1] % per_byte)]), weights.bits)


def _pack(integers: np.ndarray, bits: int) -> np.ndarray:
    unsigned = (integers.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    packed = np.zeros((*unsigned.shape[:-1], unsigned.shape[-1] * bits // 8), np.uint8)
    for slot in range(8 // bits):
        packed |= unsigned[..., slot :: 8 // bits] << np.uint8(slot * bits)
    return packed


def stack(parts: Sequence[BlockWeights]) -> BlockWeights:
    """Matrices of one width and format, concatenated along their output features."""
    first = parts[0]
    points = None
    if first.zero_points is not None:
        points = np.concatenate([part.zero_points for part in parts if part.zero_points is not None])
    return replace(
        first,
        integers=np.concatenate([part.integers for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zero_points=points,
    )


def interleave(weights: Weights) -> Weights:
    """Gate and up rows alternating, as `swiglu_fusion = 1` wants them, from experts (N, 2F, D) with all gates first."""
    if isinstance(weights, BlockWeights):
        points = None if weights.zero_points is None else interleave(weights.zero_points)
        return replace(
            weights, integers=interleave(weights.integers), scales=interleave(weights.scales), zero_points=points
        )
    N, rows, width = weights.shape
    return np.ascontiguousarray(weights.reshape(N, 2, rows // 2, width).swapaxes(1, 2)).reshape(N, rows, width)
