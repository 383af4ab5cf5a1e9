"""`EnhancedMoEForCausalLM` as an ONNX graph of ONNX Runtime's fused operators (domain com.microsoft).

Shapes: see `ava_core.models.shapes`; here C is the cache's capacity in positions per row, M the number of tokens whose
logits are wanted.

Inputs: input_ids (B, S); past_key_values.LAYER.key and .value (B, G, C, A); query_lengths (B,) int32, how many of the S
tokens of a row count, the rest is padding on the right; last_positions (B,) int32, the position of the last of them;
total_length () int32, the length of the longest row, new tokens included; logit_indices (M,), indices into the B * S
tokens.
Outputs: logits (M, V); present.LAYER.key and .value, which may be the memory of the past ones; and per layer
the router's logits and the gate values of chosen experts, 0 for the others, (B, S, E); `DecoderShape` has their names.

The operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from onnx import TensorProto

from ava_core.config.context import DYNAMIC, SLIDING
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.rope import frequencies
from ava_core.onnx.block_weights import BlockWeights, Stored
from ava_core.onnx.fused_matrices import Matrices
from ava_core.onnx.fused_mixture import Mixture
from ava_core.onnx.graph import CONTRIB, GraphWriter
from ava_core.onnx.parameters import Parameters
from ava_core.onnx.routing import require_router
from ava_core.onnx.shape import DecoderShape

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
HEAD_MULTIPLE = 16
"""GroupQueryAttention takes head sizes that are multiples of it."""


class FusedGraph:
    """Adds the model's graph to a writer.

    Args:
        model: the float model.
        writer: where the graph goes.
        rounded: matrices with rounded weights, by parameter; a matrix that isn't there stays float32.
        accuracy_level: of MatMulNBits and QMoE: 0 keeps float32 activations where a kernel can, 4 lets them be
            quantised to int8, which is faster.

    Raises:
        AvaError: the model has a router or a parameter that the graph lacks.
        ConfigError: heads of a size that the attention doesn't take, positions whose angles follow the length of the
            text, or a block of rounded weights that doesn't divide a row.
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
        self.writer, self.parameters = writer, Parameters(model)
        self.matrices = Matrices(writer, self.parameters, rounded, accuracy_level)
        self.mixture = Mixture(self.config, self.matrices)
        require_router(self.config)
        if self.config.rope_parameters["rope_type"] == DYNAMIC:
            raise ConfigError(
                "model.rope_scaling.type = dynamic: GroupQueryAttention has one table of angles for texts of every"
                " length: set quantize.portable = true, or go on training with yarn"
            )
        if self.head_dim % HEAD_MULTIPLE:
            raise ConfigError(
                f"model.head_dim = {self.head_dim}: GroupQueryAttention takes multiples of {HEAD_MULTIPLE} only: set"
                " quantize.portable = true"
            )

    def build(self) -> None:
        """Add all inputs, nodes and outputs."""
        w, config = self.writer, self.config
        self._declare_inputs()
        x_BSD = self.matrices.embedding()
        delta, gate_logits = None, None
        for layer in range(config.num_layers):
            at = f"model.layers.{layer}"
            normed, x_BSD = self._norm(x_BSD, delta, f"{at}.input_layernorm")
            delta = self._attention(layer, normed)
            normed, x_BSD = self._norm(x_BSD, delta, f"{at}.post_attention_layernorm")
            delta, gate_logits = self.mixture.add(layer, normed, gate_logits)
        # Only the wanted tokens go through the head, which is the widest product of a small model.
        x_BSD = w.add("Add", [x_BSD, str(delta)], "last")
        x_TD = w.add("Reshape", [x_BSD, w.indices(-1, config.hidden_size)], "last.tokens")
        x_MD = w.add("Gather", [x_TD, "logit_indices"], "last.wanted", axis=0)
        normed, _ = self._norm(x_MD, None, "model.norm")
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self.matrices.product(normed, [head], "logits")
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
        for name in (name for names in self.mixture.routed for name in names):
            w.output(name, FLOAT, ["batch", "sequence", config.num_experts])

    def shape(self) -> DecoderShape:
        """Sizes and output names that a session needs to run the graph; after `build`."""
        return DecoderShape(
            num_layers=self.config.num_layers,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            vocab_size=self.config.vocab_size,
            num_experts=self.config.num_experts,
            max_position_embeddings=self.config.max_position_embeddings,
            router_outputs=tuple(self.mixture.routed),
        )

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
        # The 7 inputs left out: positions, which follow from the lengths, bias, sinks, two scales and two norms.
        inputs = [*self._queries_keys_values(layer, normed), *past, *lengths, *[""] * 7, "query_lengths"]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        sliding = config.sliding_window is not None and config.layer_types[layer] == SLIDING
        window = {"local_window_size": config.sliding_window} if sliding else {}
        out = w.add(
            "GroupQueryAttention", inputs, f"{at}.out", *present, domain=CONTRIB,
            num_heads=config.num_attention_heads, kv_num_heads=self.num_key_value_heads, do_rotary=1, **window,
        )  # fmt: skip
        return self.matrices.product(out, [f"{at}.o_proj.weight"], f"{at}.o_proj")

    def _queries_keys_values(self, layer: int, normed: str) -> list[str]:
        """Query, key and value inputs of the attention; packed into the first where no QK-norm stands between."""
        w, config, product = self.writer, self.config, self.matrices.product
        at = f"model.layers.{layer}.self_attn"
        names = [f"{at}.{part}_proj.weight" for part in "qkv"]
        packed = self._same_plan(names)
        if packed and config.qk_norm == "none":
            return [product(normed, names, f"{at}.qkv"), "", ""]
        heads, A = config.num_attention_heads + self.num_key_value_heads, self.head_dim
        widths = [config.num_attention_heads * A, self.num_key_value_heads * A, self.num_key_value_heads * A]
        q, k, v = (f"{at}.{part}" for part in "qkv")
        if config.qk_norm == "head":
            # The norm of all heads at once: a node each costs more than what it computes for one token.
            if packed:
                qkv = product(normed, names, f"{at}.qkv")
                both = f"{at}.qk"
                w.add("Split", [qkv, w.indices(sum(widths[:2]), widths[2])], both, v, axis=-1)
            else:
                parts = [product(normed, [name], part) for name, part in zip(names, (q, k, v), strict=True)]
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
            w.add("Split", [product(normed, names, f"{at}.qkv"), w.indices(*widths)], q, k, v, axis=-1)
        else:
            for name, part in zip(names, (q, k, v), strict=True):
                product(normed, [name], part)
        if config.qk_norm == "projection":
            q, k = (self._norm(x, None, f"{at}.{part}_norm")[0] for x, part in ((q, "q"), (k, "k")))
        return [q, k, v]

    def _head_scales(self, at: str) -> str:
        """Weights of the norms of all query and key heads, (H + G, A)."""
        counts = {"q": self.config.num_attention_heads, "k": self.num_key_value_heads}
        rows = [self.parameters.take(f"{at}.{part}_norm.weight").expand(count, -1) for part, count in counts.items()]
        return self.writer.constant(f"{at}.qk_norm", torch.cat(rows).numpy())

    def _same_plan(self, names: list[str]) -> bool:
        """Whether the matrices have one format, so that one product takes them stacked."""
        plans = [self.matrices.rounded.get(name) for name in names]
        formats = {
            (plan.bits, plan.block_size, plan.zero_points is None) if isinstance(plan, BlockWeights) else plan is None
            for plan in plans
        }
        return len(formats) == 1

    def _rotary(self) -> list[str]:
        """Cosines and sines (max_position_embeddings, A/2)."""
        w, config = self.writer, self.config
        frequency, factor = frequencies(config)
        angle = torch.arange(config.max_position_embeddings, dtype=torch.float32)[:, None] * frequency
        cosines, sines = angle.cos() * factor, angle.sin() * factor
        return [w.constant("cosines", cosines.numpy()), w.constant("sines", sines.numpy())]
