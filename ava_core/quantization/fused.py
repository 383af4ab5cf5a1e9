"""`EnhancedMoEForCausalLM` as an ONNX graph of ONNX Runtime's fused operators (domain com.microsoft).

Shapes: see `ava_core.models.shapes`; C positions of room per row in the cache, M logits that are wanted.

Inputs: input_ids (B, S); past_key_values.LAYER.key and .value (B, G, C, A); query_lengths (B,) int32, how many of the S
tokens of a row count, the rest is padding on the right; last_positions (B,) int32, the position of the last of them;
total_length () int32, the longest row with its new tokens; logit_indices (M,), places among the B * S tokens.
Outputs: logits (M, V); present.LAYER.key and .value, which may be the memory of the past ones; and per layer
the router's logits and the gate values of chosen experts, 0 for the others, (B, S, E); `DecoderShape` has their names.

Only the chosen experts are evaluated: QMoE takes their gate values as they are and skips those that are 0. It has
integer weights only, so unrounded experts are MoE, which takes the softmax of what it is given: the logarithm of the
gate values, whose sum scales the result.

The operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from onnx import TensorProto

from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.quantization.blockwise import BlockWeights, Stored
from ava_core.quantization.graph import CONTRIB, GraphWriter
from ava_core.quantization.packing import interleave, pack, pack_zero_points, require_fit, stack
from ava_core.quantization.parameters import Parameters
from ava_core.quantization.routing import add_router, require_router
from ava_core.quantization.shape import DecoderShape

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
HEAD_MULTIPLE = 16
TINY = 1e-30
"""Added to gate values before their logarithm is taken."""


class FusedGraph:
    """Adds the model's graph to a writer.

    Args:
        model: the float model.
        writer: where the graph goes.
        rounded: matrices with rounded weights, by parameter; a matrix that isn't there stays float32.
        accuracy_level: of MatMulNBits and QMoE: 0 keeps float32 activations where a kernel can, 4 lets them be
            rounded to 8 bits, which is faster.

    Raises:
        AvaError: the model has a router or a parameter that the graph lacks.
        ConfigError: heads of a size that the attention doesn't take, or a block of rounded weights that doesn't
            divide a row.
    """

    def __init__(
        self,
        model: EnhancedMoEForCausalLM,
        writer: GraphWriter,
        rounded: Mapping[str, Stored],
        accuracy_level: int = 0,
    ) -> None:
        self.config: EnhancedMoEConfig = model.config
        # The configuration fills these two in when they are left out; here they are whole numbers.
        self.head_dim = int(self.config.head_dim or 0)
        self.num_key_value_heads = int(self.config.num_key_value_heads or 0)
        self.writer, self.rounded, self.accuracy_level = writer, rounded, accuracy_level
        self.parameters = Parameters(model)
        self.routed: list[tuple[str, str]] = []
        self.halves: dict[str, str] = {}
        require_router(self.config)
        if self.head_dim % HEAD_MULTIPLE:
            raise ConfigError(
                f"model.head_dim = {self.head_dim}: GroupQueryAttention takes multiples of {HEAD_MULTIPLE} only: set"
                " quantize.portable = true"
            )

    def build(self) -> None:
        """Add all inputs, nodes and outputs."""
        w, config = self.writer, self.config
        self._declare_inputs()
        x_BSD = self._embedding()
        delta, gate_logits = None, None
        for layer in range(config.num_layers):
            at = f"model.layers.{layer}"
            normed, x_BSD = self._norm(x_BSD, delta, f"{at}.input_layernorm")
            delta = self._attention(layer, normed)
            normed, x_BSD = self._norm(x_BSD, delta, f"{at}.post_attention_layernorm")
            delta, gate_logits = self._mixture(layer, normed, gate_logits)
        # Only the wanted tokens go through the head, which is the widest product of a small model.
        x_BSD = w.add("Add", [x_BSD, str(delta)], "last")
        x_TD = w.add("Reshape", [x_BSD, w.indices(-1, config.hidden_size)], "last.tokens")
        x_MD = w.add("Gather", [x_TD, "logit_indices"], "last.wanted", axis=0)
        normed, _ = self._norm(x_MD, None, "model.norm")
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self._product(normed, [head], "logits")
        self._declare_outputs()
        self.parameters.require_all_used()

    def _declare_inputs(self) -> None:
        w = self.writer
        w.input("input_ids", INT64, ["batch", "sequence"])
        w.input("query_lengths", INT32, ["batch"])
        w.input("last_positions", INT32, ["batch"])
        w.input("total_length", INT32, [])
        w.input("logit_indices", INT64, ["wanted"])
        shape: list[int | str] = ["batch", self.num_key_value_heads, "room", self.head_dim]
        for layer in range(self.config.num_layers):
            for part in ("key", "value"):
                w.input(f"past_key_values.{layer}.{part}", FLOAT, shape)

    def _declare_outputs(self) -> None:
        w, config = self.writer, self.config
        w.output("logits", FLOAT, ["wanted", config.vocab_size])
        shape: list[int | str] = ["batch", self.num_key_value_heads, "room_after", self.head_dim]
        for layer in range(config.num_layers):
            for part in ("key", "value"):
                w.output(f"present.{layer}.{part}", FLOAT, shape)
        for name in (name for names in self.routed for name in names):
            w.output(name, FLOAT, ["batch", "sequence", config.num_experts])

    def shape(self) -> DecoderShape:
        """What one has to know to run the graph; after `build`."""
        return DecoderShape(
            num_layers=self.config.num_layers,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            vocab_size=self.config.vocab_size,
            num_experts=self.config.num_experts,
            max_position_embeddings=self.config.max_position_embeddings,
            router_outputs=tuple(self.routed),
        )

    # Matrices

    def _embedding(self) -> str:
        w, name = self.writer, "model.embed_tokens.weight"
        weight = self.parameters.take(name).numpy()
        rounded = self.rounded.get(name)
        if not isinstance(rounded, BlockWeights):
            return w.add("Gather", [self._float(name, weight, rounded), "input_ids"], "embedded", axis=0)
        require_fit(name, rounded)
        inputs = [w.constant(f"{name}.rows", pack(rounded)), "input_ids", *self._scales(name, rounded)]
        return w.add(
            "GatherBlockQuantized", inputs, "embedded", domain=CONTRIB,
            bits=rounded.bits, block_size=rounded.block_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _float(self, name: str, weight: np.ndarray, half: np.ndarray | None) -> str:
        """A matrix in float32, or stored as float16."""
        return self.writer.constant(name, weight) if half is None else self._halved(name, half)

    def _halved(self, name: str, half: np.ndarray) -> str:
        if name not in self.halves:
            self.halves[name] = self.writer.half(name, half)
        return self.halves[name]

    def _scales(self, name: str, rounded: BlockWeights) -> list[str]:
        """Float32 scales, and zero points where there are some, (O, J) or (N, O, J)."""
        w = self.writer
        found = [w.widened(f"{name}.scales", rounded.scales)]
        if rounded.zero_points is not None:
            found.append(w.constant(f"{name}.zero_points", pack_zero_points(rounded)))
        return found

    def _product(self, x: str, names: list[str], out: str) -> str:
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
        inputs = [x, w.constant(f"{name}.blocks", packed), *self._scales(name, blocks)]
        return w.add(
            "MatMulNBits", inputs, out, domain=CONTRIB,
            K=inputs_, N=outputs, bits=blocks.bits, block_size=blocks.block_size, accuracy_level=self.accuracy_level,
        )  # fmt: skip

    # Pieces

    def _norm(self, x: str, delta: str | None, name: str) -> tuple[str, str]:
        """RMS norm of x + delta, and that sum."""
        w, epsilon = self.writer, self.config.rms_norm_eps
        weight = w.constant(f"{name}.weight", self.parameters.take(f"{name}.weight").numpy())
        if delta is None:
            return w.add("RMSNormalization", [x, weight], name, axis=-1, epsilon=epsilon), x
        total = f"{name}.input"
        inputs = [x, delta, weight]
        outputs = [name, "", "", total]
        w.add("SkipSimplifiedLayerNormalization", inputs, *outputs, domain=CONTRIB, epsilon=epsilon)
        return name, total

    def _attention(self, layer: int, normed: str) -> str:
        w, config = self.writer, self.config
        at = f"model.layers.{layer}.self_attn"
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        lengths = ["last_positions", "total_length", *self._rotary()]
        # The eight inputs left out: positions, which follow from the lengths, biases, sinks, scales and norms.
        inputs = [*self._queries_keys_values(layer, normed), *past, *lengths, *[""] * 7, "query_lengths"]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        out = w.add(
            "GroupQueryAttention", inputs, f"{at}.out", *present, domain=CONTRIB,
            num_heads=config.num_attention_heads, kv_num_heads=self.num_key_value_heads, do_rotary=1,
        )  # fmt: skip
        return self._product(out, [f"{at}.o_proj.weight"], f"{at}.o_proj")

    def _queries_keys_values(self, layer: int, normed: str) -> list[str]:
        """The first three inputs of the attention; packed into the first where no norm stands between."""
        w, config = self.writer, self.config
        at = f"model.layers.{layer}.self_attn"
        names = [f"{at}.{part}_proj.weight" for part in "qkv"]
        packed = self._same_plan(names)
        if packed and config.qk_norm == "none":
            return [self._product(normed, names, f"{at}.qkv"), "", ""]
        heads, A = config.num_attention_heads + self.num_key_value_heads, self.head_dim
        widths = [config.num_attention_heads * A, self.num_key_value_heads * A, self.num_key_value_heads * A]
        q, k, v = (f"{at}.{part}" for part in "qkv")
        if config.qk_norm == "head":
            # The norm of all heads at once: a node each costs more than what it computes for one token.
            if packed:
                qkv = self._product(normed, names, f"{at}.qkv")
                both = f"{at}.qk"
                w.add("Split", [qkv, w.indices(sum(widths[:2]), widths[2])], both, v, axis=-1)
            else:
                parts = [self._product(normed, [name], part) for name, part in zip(names, (q, k, v), strict=True)]
                both = w.add("Concat", parts[:2], f"{at}.qk", axis=-1)
            both = w.add("Reshape", [both, w.indices(0, 0, heads, A)], f"{at}.heads")
            both = w.add(
                "RMSNormalization",
                [both, self._head_scales(at)],
                f"{at}.heads.normed",
                axis=-1,
                epsilon=config.rms_norm_eps,
            )
            both = w.add("Reshape", [both, w.indices(0, 0, heads * A)], f"{at}.qk.normed")
            w.add("Split", [both, w.indices(*widths[:2])], f"{q}.normed", f"{k}.normed", axis=-1)
            return [f"{q}.normed", f"{k}.normed", v]
        if packed:
            w.add("Split", [self._product(normed, names, f"{at}.qkv"), w.indices(*widths)], q, k, v, axis=-1)
        else:
            for name, part in zip(names, (q, k, v), strict=True):
                self._product(normed, [name], part)
        if config.qk_norm == "projection":
            q, k = (self._norm(x, None, f"{at}.{part}_norm")[0] for x, part in ((q, "q"), (k, "k")))
        return [q, k, v]

    def _head_scales(self, at: str) -> str:
        """Weights of the norms of all query and key heads, (H + G, A)."""
        counts = {"q": self.config.num_attention_heads, "k": self.num_key_value_heads}
        rows = [self.parameters.take(f"{at}.{part}_norm.weight").expand(count, -1) for part, count in counts.items()]
        return self.writer.constant(f"{at}.qk_norm", torch.cat(rows).numpy())

    def _same_plan(self, names: list[str]) -> bool:
        plans = [self.rounded.get(name) for name in names]
        formats = {
            (plan.bits, plan.block_size, plan.zero_points is None) if isinstance(plan, BlockWeights) else plan is None
            for plan in plans
        }
        return len(formats) == 1

    def _rotary(self) -> list[str]:
        """Cosines and sines (max_position_embeddings, A/2)."""
        w, config = self.writer, self.config
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32)
        frequency = config.rope_theta ** (-exponent / self.head_dim)
        angle = torch.arange(config.max_position_embeddings, dtype=torch.float32)[:, None] * frequency
        return [w.constant("cosines", angle.cos().numpy()), w.constant("sines", angle.sin().numpy())]

    def _mixture(self, layer: int, normed: str, previous: str | None) -> tuple[str, str]:
        """What the layer's mixture adds (B, S, D), and its gate's logits."""
        w, config = self.writer, self.config
        at = f"model.layers.{layer}.moe"
        gate_logits, shares = self._gate(normed, at)
        if config.gating_residuals and previous is not None:
            residual = self._transposed(f"{at}.gate.residual_weight")
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
        """The gate's own logits (B, S, num_logits), and of the constant experts a1 of eq. 5 (B, S, C).

        [a1, a2] is a softmax of two, so a1 is the sigmoid of their difference: a product with C rows, which joins the
        gate's.
        """
        w, C = self.writer, self.config.num_constant_experts
        gate = self.parameters.take(f"{at}.gate.weight")
        if not C:
            return w.add("MatMul", [normed, w.constant(f"{at}.gate.transposed", _transposed(gate))], f"{at}.gate"), None
        mix = self.parameters.take(f"{at}.zero_computation.mix_weight").unflatten(0, (C, 2))
        rows = torch.cat((gate, mix[:, 0] - mix[:, 1]))
        both = w.add("MatMul", [normed, w.constant(f"{at}.gate.transposed", _transposed(rows))], f"{at}.gate_and_mix")
        w.add("Split", [both, w.indices(len(gate), C)], f"{at}.gate", f"{at}.mix", axis=-1)
        return f"{at}.gate", w.add("Sigmoid", [f"{at}.mix"], f"{at}.a1")

    def _ffn_experts(self, normed: str, weights: str, at: str) -> str:
        w, config = self.writer, self.config
        N = config.num_ffn_experts
        gates = w.add("Reshape", [weights, w.indices(-1, N)], f"{at}.gates")
        up_name, down_name = f"{at}.gate_up_proj", f"{at}.down_proj"
        up, down = self.rounded.get(up_name), self.rounded.get(down_name)
        up_weight, down_weight = self.parameters.take(up_name).numpy(), self.parameters.take(down_name).numpy()
        attributes = {
            "k": min(config.max_slots, N), "activation_type": "swiglu", "swiglu_fusion": 1,
            "activation_alpha": 1.0, "activation_beta": 0.0, "normalize_routing_weights": 0,
        }  # fmt: skip
        if not isinstance(up, BlockWeights) or not isinstance(down, BlockWeights):
            up_in = w.constant(f"{up_name}.interleaved", interleave(up_weight))
            down_in = w.constant(down_name, np.ascontiguousarray(down_weight))
            # Softmax of the logarithm: each gate value over their sum, which scales the result.
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
            scales, *points = self._scales(name, blocks)
            inputs += [w.constant(f"{name}.experts", pack(blocks)), scales, ""]
            zero_points += points or [""]
        # A third layer, its scales and biases are left out: SwiGLU's two are one.
        inputs += ["", "", "", *zero_points]
        return w.add(
            "QMoE", [*inputs, "", gates], f"{at}.out", domain=CONTRIB,
            expert_weight_bits=up.bits, block_size=up.block_size, accuracy_level=self.accuracy_level, **attributes,
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
        both = self._product(normed, [f"{at}.gate_up_proj.weight"], f"{at}.gate_up")
        w.add("Split", [both], f"{at}.gate", f"{at}.up", axis=-1, num_outputs=2)
        sigmoid = w.add("Sigmoid", [f"{at}.gate"], f"{at}.sigmoid")
        hidden = w.add("Mul", [w.add("Mul", [f"{at}.gate", sigmoid], f"{at}.silu"), f"{at}.up"], f"{at}.hidden")
        return self._product(hidden, [f"{at}.down_proj.weight"], f"{at}.down")

    def _transposed(self, name: str) -> str:
        return self.writer.constant(f"{name}.transposed", _transposed(self.parameters.take(name)))

    def _scalar(self, name: str, value: float) -> str:
        return self.writer.constant(name, np.asarray(value, np.float32))


def _transposed(weight: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(weight.numpy().T)
