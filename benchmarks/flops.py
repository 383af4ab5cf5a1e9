"""Floating-point operations of a training step, by the convention of model-FLOPs utilisation (arXiv 2204.02311, B)."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.workload import Workload


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


def active_parameters(work: Workload, ffn_experts: float, routed_experts: int, constant_experts: int = 0) -> float:
    """Entries of the matrices that a token is multiplied with inside the layers.

    Args:
        ffn_experts: FFN experts that the average token passes; `experts_per_token` for a dense network of that width.
        routed_experts: width of the router, 0 for a dense model.
        constant_experts: of MoE++; each has two rows that mix and one vector.

    Embedding, head, norms and gating residuals (E x E) don't count.
    """
    heads = 2 * (work.heads + work.key_value_heads) * work.head_dim
    layer = work.hidden_size * (heads + ffn_experts * 3 * work.expert_size + routed_experts + 3 * constant_experts)
    return work.layers * layer


def training_flops_per_token(
    work: Workload, ffn_experts: float, routed_experts: int, constant_experts: int = 0, *, causal: bool = False
) -> float:
    """FLOPs per token of forward and backward: 6 x active parameters + 6 D V of the head + attention.

    The two attention products of a layer cost 2 x 2 S H A per token, three times that with their gradients.
    `causal` counts only the (S + 1) / 2 positions that the average token may look at; without it all S count, as in
    the figures that others publish. Recomputation and the optimiser are no useful work and count nothing.
    """
    looked_at = (work.length + 1) / 2 if causal else work.length
    attention = 12 * work.layers * work.heads * work.head_dim * looked_at
    head = 6 * work.hidden_size * work.vocab_size
    return 6 * active_parameters(work, ffn_experts, routed_experts, constant_experts) + head + attention


def products(work: Workload) -> list[Product]:
    """The matrix products of a step with even routing, by shape: forward, gradient of input, gradient of weight.

    The router's and those inside attention are left out.
    """
    D, F, N = work.hidden_size, work.expert_size, work.experts
    rows = max(1, work.tokens * work.experts_per_token // N)
    shapes = {
        "query and output": (work.tokens, D, work.heads * work.head_dim, 2 * work.layers),
        "key and value": (work.tokens, D, work.key_value_heads * work.head_dim, 2 * work.layers),
        "gate and up": (rows, D, 2 * F, N * work.layers),
        "down": (rows, F, D, N * work.layers),
        "head": (work.tokens, D, work.vocab_size, 1),
    }
    found = []
    for name, (m, k, n, count) in shapes.items():
        for part, (r, i, c) in {
            "": (m, k, n),
            ", gradient of input": (m, n, k),
            ", gradient of weight": (n, m, k),
        }.items():
            found.append(Product(name=name + part, rows=r, inner=i, columns=c, count=count))
    return found
