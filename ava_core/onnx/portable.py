"""`EnhancedMoEForCausalLM` as an ONNX graph of standard operators only, for any runtime.

Shapes: see `ava_core.models.shapes`; P cached positions, X = P + S in all.

Inputs: input_ids, position_ids (B, S), attention_mask (B, X), past_key_values.LAYER.key and .value (B, G, P, A), and
logits_to_keep (1,), which may be left out. Outputs: logits (B, S or logits_to_keep, V), present.LAYER.key and .value
(B, G, X, A), router_logits and router_choices (L, T, E).

attention_mask holds 0 for padding, else the token's segment id: attention is causal within a segment. All ones is the
usual mask; document numbers from 1 give packed sequences.

Every expert is evaluated for every token, as two products: the experts' first layers are stacked into one matrix, the
gate values scale the hidden units, and the stacked second layers sum over the experts. Unchosen experts have gate
value 0. The sparse evaluation is the fused graph's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from ava_core.config.context import DYNAMIC, FULL, SLIDING
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.rope import frequencies
from ava_core.onnx.block_weights import BlockWeights, Stored
from ava_core.onnx.graph import GraphWriter
from ava_core.onnx.parameters import Parameters
from ava_core.onnx.routing import END, add_router, require_router

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


class PortableGraph:
    """Adds the model's graph to a writer.

    Args:
        model: the float model.
        writer: where the graph goes.
        rounded: matrices with rounded weights, by parameter; a matrix that isn't there stays float32.

    Raises:
        AvaError: the model has a router or a parameter that the graph lacks.
    """

    def __init__(self, model: EnhancedMoEForCausalLM, writer: GraphWriter, rounded: Mapping[str, Stored]) -> None:
        self.config: EnhancedMoEConfig = model.config
        # The configuration fills these two in when they are left out; here they are whole numbers.
        self.head_dim = int(self.config.head_dim or 0)
        self.num_key_value_heads = int(self.config.num_key_value_heads or 0)
        self.writer, self.rounded = writer, rounded
        self.parameters = Parameters(model)
        require_router(self.config)

    def build(self) -> None:
        """Add all inputs, nodes and outputs."""
        w, config = self.writer, self.config
        w.input("input_ids", INT64, ["batch", "sequence"])
        w.input("attention_mask", INT64, ["batch", "total"])
        w.input("position_ids", INT64, ["batch", "sequence"])
        for layer in range(config.num_layers):
            for part in ("key", "value"):
                shape: list[int | str] = ["batch", self.num_key_value_heads, "past", self.head_dim]
                w.input(f"past_key_values.{layer}.{part}", FLOAT, shape)
        w.input("logits_to_keep", INT64, [1], default=np.zeros(1, np.int64))

        embedding = self._matrix("model.embed_tokens.weight")
        x_BSD = w.add("Gather", [embedding, "input_ids"], "embedded", axis=0)
        masks, rotary = self._masks(), self._rotary()
        gate_logits, routed = None, []
        for layer in range(config.num_layers):
            x_BSD = self._attention(layer, x_BSD, masks[layer], rotary)
            x_BSD, gate_logits, logits_TE, choices_TE = self._mixture(layer, x_BSD, gate_logits)
            routed.append((logits_TE, choices_TE))
        x_BSD = self._norm(x_BSD, "model.norm")
        # A count of 0 starts at -0 = 0 and keeps everything, as in Transformers.
        first = w.add("Neg", ["logits_to_keep"], "first_kept")
        kept = w.add("Slice", [x_BSD, first, w.indices(END), w.indices(1)], "kept")
        tied = config.tie_word_embeddings
        self._product(kept, embedding if tied else self._matrix("lm_head.weight"), "logits")
        self._declare_outputs(routed)
        self.parameters.require_all_used()

    def _declare_outputs(self, routed: list[tuple[str, str]]) -> None:
        w, config = self.writer, self.config
        w.output("logits", FLOAT, ["batch", "kept", config.vocab_size])
        for layer in range(config.num_layers):
            for part in ("key", "value"):
                shape: list[int | str] = ["batch", self.num_key_value_heads, "total", self.head_dim]
                w.output(f"present.{layer}.{part}", FLOAT, shape)
        for index, (name, element) in enumerate((("router_logits", FLOAT), ("router_choices", BOOL))):
            per_layer = [w.add("Unsqueeze", [layer[index], w.indices(0)], f"{layer[index]}.1TE") for layer in routed]
            w.add("Concat", per_layer, name, axis=0)
            w.output(name, element, [config.num_layers, "tokens", config.num_experts])

    # Parameters

    def _matrix(self, name: str) -> str:
        """A parameter that may be rounded, as its float32 value."""
        weight = self.parameters.take(name).numpy()
        blocks = self.rounded.get(name)
        if blocks is None:
            return self.writer.constant(name, weight)
        if isinstance(blocks, BlockWeights):
            return self.writer.block_weights(name, blocks)
        return self.writer.half(name, blocks)

    def _float(self, name: str) -> str:
        """A parameter that stays float32."""
        return self.writer.constant(name, self.parameters.take(name).numpy())

    def _float_transposed(self, name: str) -> str:
        return self.writer.constant(name, np.ascontiguousarray(self.parameters.take(name).numpy().T))

    # Pieces

    def _product(self, x: str, weight_OI: str, name: str) -> str:
        """x @ weight^T."""
        transposed = self.writer.add("Transpose", [weight_OI], f"{name}.transposed", perm=[1, 0])
        return self.writer.add("MatMul", [x, transposed], name)

    def _norm(self, x: str, name: str) -> str:
        weight = self._float(f"{name}.weight")
        return self.writer.add("RMSNormalization", [x, weight], name, axis=-1, epsilon=self.config.rms_norm_eps)

    def _swiglu(self, gate: str, up: str, name: str) -> str:
        w = self.writer
        sigmoid = w.add("Sigmoid", [gate], f"{name}.sigmoid")
        return w.add("Mul", [w.add("Mul", [gate, sigmoid], f"{name}.silu"), up], name)

    def _halves(self, x: str, name: str) -> tuple[str, str]:
        self.writer.add("Split", [x], f"{name}.gate", f"{name}.up", axis=-1, num_outputs=2)
        return f"{name}.gate", f"{name}.up"

    def _masks(self) -> list[str]:
        """For each layer bool (B, 1, S, X): earlier keys of the query's own segment, in a sliding layer those of the
        window. A padding query sees only itself."""
        w, config = self.writer, self.config
        past = w.add("Shape", ["past_key_values.0.key"], "past_length", start=2, end=3)
        total = w.add("Squeeze", [w.add("Shape", ["attention_mask"], "total_length", start=1, end=2)], "total")
        key_X = w.add("Range", [w.index(0), total, w.index(1)], "key_positions")
        query_S = w.add("Slice", [key_X, past, w.indices(END)], "query_positions")
        query_S1 = w.add("Unsqueeze", [query_S, w.indices(1)], "query_positions.S1")
        earlier = w.add("LessOrEqual", [key_X, query_S1], "earlier")
        itself = w.add("Equal", [key_X, query_S1], "itself")
        query_segment = w.add("Slice", ["attention_mask", past, w.indices(END), w.indices(1)], "query_segments")
        query_segment = w.add("Unsqueeze", [query_segment, w.indices(1, 3)], "query_segments.B1S1")
        key_segment = w.add("Unsqueeze", ["attention_mask", w.indices(1, 2)], "key_segments.B11X")
        same = w.add("Equal", [query_segment, key_segment], "same_segment")
        filled = w.add("Not", [w.add("Equal", [key_segment, w.index(0)], "is_padding")], "is_token")
        visible = w.add("And", [w.add("And", [same, filled], "same_and_token"), earlier], "visible")
        masks = {FULL: w.add("Or", [visible, itself], "mask")}
        if config.sliding_window is None:
            return [masks[FULL]] * config.num_layers
        first = w.add("Sub", [query_S1, w.index(config.sliding_window)], "before_window")
        near = w.add("And", [masks[FULL], w.add("Greater", [key_X, first], "in_window")], "mask.window")
        return [{**masks, SLIDING: near}[kind] for kind in config.layer_types]

    def _rotary(self) -> tuple[str, str]:
        """Cosines and sines (B, S, A/2), from the positions, so that no length is built in."""
        w, config = self.writer, self.config
        positions = w.add("Cast", ["position_ids"], "positions", to=FLOAT)
        positions = w.add("Unsqueeze", [positions, w.indices(2)], "positions.BS1")
        frequency, factor = frequencies(config)
        if config.rope_parameters["rope_type"] == DYNAMIC:
            constant = self._dynamic_frequencies(positions)
        else:
            constant = w.constant("rotary_frequencies", frequency.numpy())
        angle = w.add("Mul", [positions, constant], "angles")
        cosines, sines = w.add("Cos", [angle], "cosines"), w.add("Sin", [angle], "sines")
        if factor == 1:
            return cosines, sines
        sharpened = w.constant("attention_factor", np.asarray(factor, np.float32))
        return w.add("Mul", [cosines, sharpened], "cosines.scaled"), w.add("Mul", [sines, sharpened], "sines.scaled")

    def _dynamic_frequencies(self, positions_BS1: str) -> str:
        """`ava_core.models.rope.dynamic_frequencies` of each row, (B, 1, A/2)."""
        w, rope, A = self.writer, self.config.rope_parameters, self.head_dim
        original, factor = rope["original_max_position_embeddings"], rope["factor"]

        def number(name: str, value: float) -> str:
            return w.constant(f"rotary.{name}", np.asarray(value, np.float32))

        length = w.add("ReduceMax", [positions_BS1, w.indices(1)], "last_position", keepdims=1)
        length = w.add("Add", [length, number("one", 1)], "text_length")
        length = w.add("Max", [length, number("original", original)], "text_length.beyond")
        stretched = w.add("Mul", [length, number("slope", factor / original)], "stretched.sum")
        stretched = w.add("Sub", [stretched, number("offset", factor - 1)], "stretched")
        growth = w.add("Pow", [stretched, number("power", A / (A - 2))], "base.growth")
        base = w.add("Mul", [growth, number("theta", rope["rope_theta"])], "base")
        exponent = w.constant("rotary.exponents", (-np.arange(0, A, 2, dtype=np.float32) / A).astype(np.float32))
        return w.add("Pow", [base, exponent], "rotary.frequencies")

    def _attention(self, layer: int, x_BSD: str, mask: str, rotary: tuple[str, str]) -> str:
        w, config = self.writer, self.config
        at = f"model.layers.{layer}.self_attn"
        normed = self._norm(x_BSD, f"model.layers.{layer}.input_layernorm")
        heads = {}
        for part in "qkv":
            count = config.num_attention_heads if part == "q" else self.num_key_value_heads
            x = self._product(normed, self._matrix(f"{at}.{part}_proj.weight"), f"{at}.{part}_proj")
            if config.qk_norm == "projection" and part != "v":
                x = self._norm(x, f"{at}.{part}_norm")
            x = w.add("Reshape", [x, w.indices(0, 0, count, self.head_dim)], f"{at}.{part}.BSHA")
            if config.qk_norm == "head" and part != "v":
                x = self._norm(x, f"{at}.{part}_norm")
            x = w.add("Transpose", [x], f"{at}.{part}.BHSA", perm=[0, 2, 1, 3])
            heads[part] = x if part == "v" else w.add("RotaryEmbedding", [x, *rotary], f"{at}.{part}.rotated")
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        out = w.add("Attention", [heads["q"], heads["k"], heads["v"], mask, *past], f"{at}.out.BHSA", *present)
        out = w.add("Transpose", [out], f"{at}.out.BSHA", perm=[0, 2, 1, 3])
        width = config.num_attention_heads * self.head_dim
        out = w.add("Reshape", [out, w.indices(0, 0, width)], f"{at}.out")
        out = self._product(out, self._matrix(f"{at}.o_proj.weight"), f"{at}.o_proj")
        return w.add("Add", [x_BSD, out], f"{at}.residual")

    def _mixture(self, layer: int, x_BSD: str, previous: str | None) -> tuple[str, str, str, str]:
        """The layer's output (B, S, D), its gate's logits, and the experts' logits (T, E) and choices (T, E)."""
        w, config = self.writer, self.config
        at = f"model.layers.{layer}.moe"
        normed = self._norm(x_BSD, f"model.layers.{layer}.post_attention_layernorm")
        x_TD = w.add("Reshape", [normed, w.indices(-1, config.hidden_size)], f"{at}.tokens")
        gate_logits = w.add("MatMul", [x_TD, self._float_transposed(f"{at}.gate.weight")], f"{at}.gate")
        if config.gating_residuals and previous is not None:
            residual = self._float_transposed(f"{at}.gate.residual_weight")
            residual = w.add("MatMul", [previous, residual], f"{at}.gate.residual")
            gate_logits = w.add("Add", [gate_logits, residual], f"{at}.gate.sum")
        logits_TE, weights_TE, ids_TK, used_TK = add_router(w, config, self.parameters, gate_logits, f"{at}.router")
        choices_TE = self._choices(logits_TE, ids_TK, used_TK, at)
        terms = [self._ffn_experts(x_TD, weights_TE, at)]
        if config.num_copy_experts or config.num_constant_experts:
            terms += self._copy_and_constant_experts(x_TD, weights_TE, at)
        if config.num_shared_experts:
            shared = f"{at}.shared_experts"
            both = self._product(x_TD, self._matrix(f"{shared}.gate_up_proj.weight"), f"{shared}.gate_up_proj")
            hidden = self._swiglu(*self._halves(both, shared), f"{shared}.hidden")
            terms.append(self._product(hidden, self._matrix(f"{shared}.down_proj.weight"), f"{shared}.down_proj"))
        out_TD = w.add("Sum", terms, f"{at}.out") if len(terms) > 1 else terms[0]
        shape = w.add("Shape", [x_BSD], f"{at}.shape")
        out_BSD = w.add("Reshape", [out_TD, shape], f"{at}.out.BSD")
        return w.add("Add", [x_BSD, out_BSD], f"{at}.residual"), gate_logits, logits_TE, choices_TE

    def _choices(self, logits_TE: str, ids_TK: str, used_TK: str, at: str) -> str:
        """Bool (T, E): which experts are chosen."""
        w = self.writer
        if not used_TK:
            used_TK = w.add("GreaterOrEqual", [ids_TK, w.index(0)], f"{at}.all_used")
        shape = w.add("Shape", [logits_TE], f"{at}.logits.shape")
        nothing = w.add("Expand", [w.constant("false", np.zeros((1, 1), bool)), shape], f"{at}.nothing")
        return w.add("ScatterElements", [nothing, ids_TK, used_TK], f"{at}.choices.TE", axis=1)

    def _ffn_experts(self, x_TD: str, weights_TE: str, at: str) -> str:
        w, config = self.writer, self.config
        at = f"{at}.experts"
        N, F, D = config.num_ffn_experts, config.expert_intermediate_size, config.hidden_size
        # (N, 2F, D) -> all gates, then all ups; (N, D, F) -> the experts side by side, expert n's units at n * F.
        gate_up = w.add("Reshape", [self._matrix(f"{at}.gate_up_proj"), w.indices(N, 2, F, D)], f"{at}.gate_up.N2FD")
        gate_up = w.add("Transpose", [gate_up], f"{at}.gate_up.2NFD", perm=[1, 0, 2, 3])
        gate_up = w.add("Reshape", [gate_up, w.indices(2 * N * F, D)], f"{at}.gate_up.weight")
        down = w.add("Transpose", [self._matrix(f"{at}.down_proj")], f"{at}.down.DNF", perm=[1, 0, 2])
        down = w.add("Reshape", [down, w.indices(D, N * F)], f"{at}.down.weight")
        both = self._product(x_TD, gate_up, f"{at}.gate_up")
        hidden = self._swiglu(*self._halves(both, at), f"{at}.hidden")
        hidden_TNF = w.add("Reshape", [hidden, w.indices(-1, N, F)], f"{at}.hidden.TNF")
        gates = w.add("Slice", [weights_TE, w.indices(0), w.indices(N), w.indices(1)], f"{at}.weights.TN")
        gates = w.add("Unsqueeze", [gates, w.indices(2)], f"{at}.weights.TN1")
        scaled = w.add(
            "Reshape", [w.add("Mul", [hidden_TNF, gates], f"{at}.scaled.TNF"), w.indices(-1, N * F)], f"{at}.scaled"
        )
        return self._product(scaled, down, f"{at}.down")

    def _copy_and_constant_experts(self, x_TD: str, weights_TE: str, at: str) -> list[str]:
        """A multiple of x, and the mix of constant vectors; the zero experts add nothing (MoE++, eq. 3 to 5)."""
        w, config = self.writer, self.config
        at = f"{at}.zero_computation"
        first_copy = config.num_ffn_experts + config.num_zero_experts
        first_constant = first_copy + config.num_copy_experts
        scales, terms = [], []
        if config.num_copy_experts:
            bounds = [w.indices(first_copy), w.indices(first_constant), w.indices(1)]
            scales.append(w.add("Slice", [weights_TE, *bounds], f"{at}.copy_weights"))
        if C := config.num_constant_experts:
            bounds = [w.indices(first_constant), w.indices(first_constant + C), w.indices(1)]
            weights_TC = w.add("Slice", [weights_TE, *bounds], f"{at}.constant_weights")
            mix = w.add("MatMul", [x_TD, self._float_transposed(f"{at}.mix_weight")], f"{at}.mix_logits")
            mix = w.add("Reshape", [mix, w.indices(-1, C, 2)], f"{at}.mix_logits.TC2")
            mix = w.add("Softmax", [mix], f"{at}.mix", axis=-1)
            for position, part in enumerate(("a1", "a2")):
                share = w.add("Gather", [mix, w.index(position)], f"{at}.{part}", axis=2)
                w.add("Mul", [weights_TC, share], f"{at}.{part}_weights")
            scales.append(f"{at}.a1_weights")
            terms.append(w.add("MatMul", [f"{at}.a2_weights", self._float(f"{at}.constants")], f"{at}.constant"))
        together = w.add("Concat", scales, f"{at}.scales", axis=1)
        scale_T1 = w.add("ReduceSum", [together, w.indices(1)], f"{at}.scale", keepdims=1)
        return [w.add("Mul", [scale_T1, x_TD], f"{at}.scaled"), *terms]
