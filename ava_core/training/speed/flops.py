"""Floating-point operations of a training step, by the convention of model-FLOPs utilisation (arXiv 2204.02311, B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ava_core.config.context import SLIDING, repeated
from ava_core.config.model import ModelConfig
from ava_core.config.parameters import attention_entries, expert_entries, head_dim
from ava_core.config.routing import max_slots
from ava_core.config.train import TrainConfig


class Shapes(Protocol):
    """What the counts depend on; a dense network is `experts` = 1 that every token passes.

    Attributes:
        tokens: of a step, or of one pass of it.
        length: tokens of a sequence.
        layers, hidden_size, vocab_size, heads, key_value_heads, head_dim: the decoder.
        experts, expert_size, experts_per_token: SwiGLU experts of each layer, the width of one, and how many a token
            has if all of its choices compute.
    """

    @property
    def tokens(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def expert_size(self) -> int: ...
    @property
    def experts_per_token(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShapes:
    """The `Shapes` of a configured training."""

    tokens: int
    length: int
    layers: int
    hidden_size: int
    vocab_size: int
    heads: int
    key_value_heads: int
    head_dim: int
    experts: int
    expert_size: int
    experts_per_token: int


def step_shapes(model: ModelConfig, train: TrainConfig, vocab_size: int) -> StepShapes:
    """The shapes of one pass of one process: a micro-batch of whole sequences."""
    return StepShapes(
        tokens=train.micro_batch_size * train.sequence_length,
        length=train.sequence_length,
        layers=model.num_layers,
        hidden_size=model.hidden_size,
        vocab_size=vocab_size,
        heads=model.num_attention_heads,
        key_value_heads=model.num_key_value_heads,
        head_dim=head_dim(model),
        experts=model.num_ffn_experts,
        expert_size=model.expert_intermediate_size,
        experts_per_token=min(max_slots(model), model.num_ffn_experts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """(rows, inner) @ (inner, columns), done `count` times in a step."""

    name: str
    rows: int
    inner: int
    columns: int
    count: int

    @property
    def flops(self) -> int:
        """Of one product: a multiplication and an addition per term."""
        return 2 * self.rows * self.inner * self.columns


def multiplied_entries(shapes: Shapes, ffn_experts: float, routed_experts: int, constant_experts: int = 0) -> float:
    """Entries of the matrices that a token is multiplied with inside the layers.

    Args:
        shapes: of the model.
        ffn_experts: FFN experts that the average token passes; `experts_per_token` for a dense network of that width.
        routed_experts: width of the router, 0 for a dense model.
        constant_experts: of MoE++; each has two rows that mix and one vector.

    Embedding, head, norms and gating residuals (E x E) don't count.
    """
    attention = attention_entries(shapes.hidden_size, shapes.heads, shapes.key_value_heads, shapes.head_dim)
    experts = ffn_experts * expert_entries(shapes.hidden_size, shapes.expert_size)
    return shapes.layers * (attention + experts + shapes.hidden_size * (routed_experts + 3 * constant_experts))


def training_flops_per_token(
    shapes: Shapes, ffn_experts: float, routed_experts: int, constant_experts: int = 0, *, causal: bool = False
) -> float:
    """FLOPs per token of forward and backward: 6 x multiplied entries + 6 D V of the head + attention.

    The two attention products of a layer cost 2 x 2 S H A per token, three times that with their gradients.
    `causal` counts only the (S + 1) / 2 positions that the average token may look at; without it all S count, as in
    the figures that others publish. Recomputation and the optimiser are no useful work and count nothing.
    """
    looked_at = (shapes.length + 1) / 2 if causal else shapes.length
    attention = 12 * shapes.layers * shapes.heads * shapes.head_dim * looked_at
    head = 6 * shapes.hidden_size * shapes.vocab_size
    return 6 * multiplied_entries(shapes, ffn_experts, routed_experts, constant_experts) + head + attention


def products(shapes: Shapes) -> list[Product]:
    """The matrix products of a step with even routing, by shape: forward, gradient of input, gradient of weight.

    The router's and those inside attention are left out.
    """
    D, F, N = shapes.hidden_size, shapes.expert_size, shapes.experts
    rows = max(1, shapes.tokens * shapes.experts_per_token // N)
    forward = {
        "query and output": (shapes.tokens, D, shapes.heads * shapes.head_dim, 2 * shapes.layers),
        "key and value": (shapes.tokens, D, shapes.key_value_heads * shapes.head_dim, 2 * shapes.layers),
        "gate and up": (rows, D, 2 * F, N * shapes.layers),
        "down": (rows, F, D, N * shapes.layers),
        "head": (shapes.tokens, D, shapes.vocab_size, 1),
    }
    found = []
    for name, (m, k, n, count) in forward.items():
        for part, (r, i, c) in {
            "": (m, k, n),
            ", gradient of input": (m, n, k),
            ", gradient of weight": (n, m, k),
        }.items():
            found.append(Product(name=name + part, rows=r, inner=i, columns=c, count=count))
    return found


def utilization(
    model: ModelConfig,
    train: TrainConfig,
    vocab_size: int,
    rows: Sequence[dict[str, float]],
    tokens_per_second: float,
    peak: float,
) -> float:
    """`model_flops_utilization`: FLOPs per token x tokens per second of whole steps, over the peak.

    Args:
        model, train: the configuration.
        vocab_size: entries of the tokenizer.
        rows: of the history; they tell how many FFN experts the average token passed. Shorter sequences of a
            curriculum look at fewer positions, which counts too, as layers with a sliding window do.
        tokens_per_second: of all processes, over whole steps.
        peak: FLOP/s of all processes' devices together; see `peak`. 0: it couldn't be measured, and the
            utilisation is 0 too.
    """
    if not peak:
        return 0.0
    shapes = step_shapes(model, train, vocab_size)
    chosen = _mean(rows, "ffn_experts_per_token", shapes.experts_per_token)
    length = _mean(rows, "sequence_length", train.sequence_length)
    per_token = training_flops_per_token(
        shapes, chosen + model.num_shared_experts, model.num_experts, model.num_constant_experts
    )
    sliding = repeated(model.layer_types, shapes.layers).count(SLIDING) if model.sliding_window else 0
    looked_at = (shapes.layers - sliding) * length + sliding * min(length, model.sliding_window or length)
    per_token -= 12 * shapes.heads * shapes.head_dim * (shapes.layers * train.sequence_length - looked_at)
    return per_token * tokens_per_second / peak


def _mean(rows: Sequence[dict[str, float]], name: str, otherwise: float) -> float:
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else otherwise
