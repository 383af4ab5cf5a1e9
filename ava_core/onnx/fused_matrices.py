"""Matrices in the fused graph, and the nodes that multiply by them: float32, float16 or block-quantised integers.

Shapes: see `ava_core.models.shapes`; O output features, J blocks in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch

from ava_core.onnx.block_weights import BlockWeights, Stored
from ava_core.onnx.graph import CONTRIB, GraphWriter
from ava_core.onnx.packing import pack, pack_zero_points, require_fit, stack
from ava_core.onnx.parameters import Parameters


class Matrices:
    """Adds products to a writer: MatMulNBits for a block-quantised matrix, else MatMul.

    Args:
        writer: where the graph goes.
        parameters: of the float model.
        rounded: matrices with rounded weights, by parameter; a matrix that isn't there stays float32.
        accuracy_level: of MatMulNBits and QMoE.
    """

    def __init__(
        self, writer: GraphWriter, parameters: Parameters, rounded: Mapping[str, Stored], accuracy_level: int
    ) -> None:
        self.writer, self.parameters, self.rounded = writer, parameters, rounded
        self.accuracy_level = accuracy_level
        self._halves: dict[str, str] = {}

    def embedding(self) -> str:
        """Rows of the embedding for input_ids, (B, S, D)."""
        w, name = self.writer, "model.embed_tokens.weight"
        weight = self.parameters.take(name).numpy()
        rounded = self.rounded.get(name)
        if not isinstance(rounded, BlockWeights):
            return w.add("Gather", [self._float(name, weight, rounded), "input_ids"], "embedded", axis=0)
        require_fit(name, rounded)
        inputs = [w.constant(f"{name}.rows", pack(rounded)), "input_ids", *self.scales(name, rounded)]
        return w.add(
            "GatherBlockQuantized", inputs, "embedded", domain=CONTRIB,
            bits=rounded.bits, block_size=rounded.block_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _float(self, name: str, weight: np.ndarray, half: np.ndarray | None) -> str:
        """A matrix in float32, or stored as float16."""
        return self.writer.constant(name, weight) if half is None else self._halved(name, half)

    def _halved(self, name: str, half: np.ndarray) -> str:
        if name not in self._halves:
            self._halves[name] = self.writer.half(name, half)
        return self._halves[name]

    def scales(self, name: str, rounded: BlockWeights) -> list[str]:
        """Float32 scales, and zero points where there are some, (O, J) or (N, O, J)."""
        w = self.writer
        found = [w.widened(f"{name}.scales", rounded.scales)]
        if rounded.zero_points is not None:
            found.append(w.constant(f"{name}.zero_points", pack_zero_points(rounded)))
        return found

    def product(self, x: str, names: list[str], out: str) -> str:
        """x times the transposed matrices, stacked: one product for parameters that share an input."""
        w = self.writer
        weights = [self.parameters.take(name).numpy() for name in names]
        rounded = [self.rounded.get(name) for name in names]
        name = names[0] if len(names) == 1 else f"{out}.weights"
        if not isinstance(rounded[0], BlockWeights):
            floats = None if rounded[0] is None else np.concatenate(cast(list[np.ndarray], rounded))
            stacked = self._float(name, np.concatenate(weights), floats)
            return w.add("MatMul", [x, w.add("Transpose", [stacked], f"{name}.transposed", perm=[1, 0])], out)
        blocks = stack([part for part in rounded if isinstance(part, BlockWeights)])
        outputs, inputs_ = blocks.shape
        packed = pack(blocks, whole_blocks=True).reshape(outputs, -1, blocks.block_size * blocks.bits // 8)
        inputs = [x, w.constant(f"{name}.blocks", packed), *self.scales(name, blocks)]
        return w.add(
            "MatMulNBits", inputs, out, domain=CONTRIB,
            K=inputs_, N=outputs, bits=blocks.bits, block_size=blocks.block_size, accuracy_level=self.accuracy_level,
        )  # fmt: skip

    def transposed(self, name: str) -> str:
        """A float32 matrix for MatMul."""
        return self.writer.constant(f"{name}.transposed", transposed(self.parameters.take(name)))


def transposed(weight: torch.Tensor) -> np.ndarray:
    """(I, O) from (O, I), contiguous: the right-hand operand of MatMul."""
    return np.ascontiguousarray(weight.numpy().T)
