"""A layer's mixture in the fused graph: gate, router, and the experts that it chooses.

Only the chosen experts are evaluated: QMoE takes gate values as they are and skips experts whose value is 0. It has
integer weights only. Experts in float32 are the operator MoE, which applies a softmax to its router input: given the
logarithm of the gate values, that is each gate value over their sum, so the result is multiplied by the sum.

Shapes: see `ava_core.models.shapes`.
"""

from __future__ import annotations

import numpy as np
import torch

from ava_core.models import EnhancedMoEConfig
from ava_core.onnx.block_weights import BlockWeights
from ava_core.onnx.fused_matrices import Matrices, transposed
from ava_core.onnx.graph import CONTRIB
from ava_core.onnx.packing import interleave, pack, require_fit
from ava_core.onnx.routing import add_router

TINY = 1e-30
"""Added to gate values before their logarithm is taken: 0, an expert that wasn't chosen, has none."""


class Mixture:
    """Adds the mixtures of all layers.

    Attributes:
        routed: per layer that was added, the names of the router's logits and of the gate values.
    """

    def __init__(self, config: EnhancedMoEConfig, matrices: Matrices) -> None:
        self.config, self.matrices = config, matrices
        self.writer, self.parameters = matrices.writer, matrices.parameters
        self.routed: list[tuple[str, str]] = []

    def add(self, layer: int, normed: str, previous: str | None) -> tuple[str, str]:
        """Names of the layer's output (B, S, D), without the residual, and of its gate's logits (B, S, num_logits)."""
        w, config = self.writer, self.config
        at = f"model.layers.{layer}.moe"
        gate_logits, shares = self._gate(normed, at)
        if config.gating_residuals and previous is not None:
            residual = self.matrices.transposed(f"{at}.gate.residual_weight")
            residual = w.add("MatMul", [previous, residual], f"{at}.gate.residual")
            gate_logits = w.add("Add", [gate_logits, residual], f"{at}.gate.sum")
        logits, weights, _, _ = add_router(w, config, self.parameters, gate_logits, f"{at}.router")
        self.routed.append((logits, weights))
        N, C, copies = config.num_ffn_experts, config.num_constant_experts, config.num_copy_experts
        parts = {"ffn": N, "zero": config.num_zero_experts, "copy": copies, "constant": C}
        sizes = {part: size for part, size in parts.items() if size}
        if len(sizes) == 1:
            names = {"ffn": weights}
        else:
            names = {part: f"{at}.{part}_weights" for part in sizes}
            w.add("Split", [weights, w.indices(*sizes.values())], *names.values(), axis=-1)
        terms = [self._ffn_experts(normed, names["ffn"], f"{at}.experts")]
        if copies or C:
            terms += self._copy_and_constant_experts(normed, names, shares, f"{at}.zero_computation")
        if config.num_shared_experts:
            terms.append(self._shared_experts(normed, f"{at}.shared_experts"))
        return (w.add("Sum", terms, f"{at}.out") if len(terms) > 1 else terms[0]), gate_logits

    def _gate(self, normed: str, at: str) -> tuple[str, str | None]:
        """The gate's own logits (B, S, num_logits), and a1 of the constant experts (MoE++, eq. 5), (B, S, C).

        [a1, a2] is a softmax of two, so a1 is the sigmoid of their difference: a product with C rows, which joins the
        gate's.
        """
        w, C = self.writer, self.config.num_constant_experts
        gate = self.parameters.take(f"{at}.gate.weight")
        if not C:
            return w.add("MatMul", [normed, w.constant(f"{at}.gate.transposed", transposed(gate))], f"{at}.gate"), None
        mix = self.parameters.take(f"{at}.zero_computation.mix_weight").unflatten(0, (C, 2))
        rows = torch.cat((gate, mix[:, 0] - mix[:, 1]))
        both = w.add("MatMul", [normed, w.constant(f"{at}.gate.transposed", transposed(rows))], f"{at}.gate_and_mix")
        w.add("Split", [both, w.indices(len(gate), C)], f"{at}.gate", f"{at}.mix", axis=-1)
        return f"{at}.gate", w.add("Sigmoid", [f"{at}.mix"], f"{at}.a1")

    def _ffn_experts(self, normed: str, weights: str, at: str) -> str:
        w, config = self.writer, self.config
        N = config.num_ffn_experts
        gates = w.add("Reshape", [weights, w.indices(-1, N)], f"{at}.gates")
        up_name, down_name = f"{at}.gate_up_proj", f"{at}.down_proj"
        up, down = self.matrices.rounded.get(up_name), self.matrices.rounded.get(down_name)
        up_weight, down_weight = self.parameters.take(up_name).numpy(), self.parameters.take(down_name).numpy()
        attributes = {
            "k": min(config.max_slots, N), "activation_type": "swiglu", "swiglu_fusion": 1,
            "activation_alpha": 1.0, "activation_beta": 0.0, "normalize_routing_weights": 0,
        }  # fmt: skip
        if not isinstance(up, BlockWeights) or not isinstance(down, BlockWeights):
            up_in = w.constant(f"{up_name}.interleaved", interleave(up_weight))
            down_in = w.constant(down_name, np.ascontiguousarray(down_weight))
            # softmax(log g) = g / sum(g); the sum is multiplied back in below.
            log = w.add("Log", [w.add("Add", [gates, self._scalar("tiny", TINY)], f"{at}.above_zero")], f"{at}.log")
            out = w.add("MoE", [normed, log, up_in, "", down_in], f"{at}.mean", domain=CONTRIB, **attributes)
            total = w.add("ReduceSum", [weights, w.indices(-1)], f"{at}.total", keepdims=1)
            return w.add("Mul", [out, total], f"{at}.out")
        require_fit(up_name, up)
        require_fit(down_name, down)
        up = interleave(up)
        inputs = [normed, gates]
        zero_points = []
        for name, blocks in ((up_name, up), (down_name, down)):
            scales, *points = self.matrices.scales(name, blocks)
            inputs += [w.constant(f"{name}.experts", pack(blocks)), scales, ""]
            zero_points += points or [""]
        # The operator's third matrix, its scales and bias are left out: gate and up are interleaved in the first.
        inputs += ["", "", "", *zero_points]
        return w.add(
            "QMoE", [*inputs, "", gates], f"{at}.out", domain=CONTRIB,
            expert_weight_bits=up.bits, block_size=up.block_size, accuracy_level=self.matrices.accuracy_level,
            **attributes,
        )  # fmt: skip

    def _copy_and_constant_experts(self, normed: str, names: dict[str, str], a1: str | None, at: str) -> list[str]:
        """A multiple of x, and the mix of constant vectors; the zero experts add nothing (MoE++, eq. 3 to 5)."""
        w, terms = self.writer, []
        scales = [names["copy"]] if "copy" in names else []
        if a1 is not None:
            scales.append(w.add("Mul", [names["constant"], a1], f"{at}.a1_weights"))
            rest = w.add("Sub", [names["constant"], scales[-1]], f"{at}.a2_weights")
            constants = w.constant(f"{at}.constants", self.parameters.take(f"{at}.constants").numpy())
            terms.append(w.add("MatMul", [rest, constants], f"{at}.constant"))
        together = scales[0] if len(scales) == 1 else w.add("Concat", scales, f"{at}.scales", axis=-1)
        scale = w.add("ReduceSum", [together, w.indices(-1)], f"{at}.scale", keepdims=1)
        return [w.add("Mul", [normed, scale], f"{at}.scaled"), *terms]

    def _shared_experts(self, normed: str, at: str) -> str:
        w = self.writer
        both = self.matrices.product(normed, [f"{at}.gate_up_proj.weight"], f"{at}.gate_up")
        w.add("Split", [both], f"{at}.gate", f"{at}.up", axis=-1, num_outputs=2)
        sigmoid = w.add("Sigmoid", [f"{at}.gate"], f"{at}.sigmoid")
        hidden = w.add("Mul", [w.add("Mul", [f"{at}.gate", sigmoid], f"{at}.silu"), f"{at}.up"], f"{at}.hidden")
        return self.matrices.product(hidden, [f"{at}.down_proj.weight"], f"{at}.down")

    def _scalar(self, name: str, value: float) -> str:
        return self.writer.constant(name, np.asarray(value, np.float32))
