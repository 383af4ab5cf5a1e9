"""How evenly the experts of a layer are used.

For a layer with E experts (FFN, then zero, copy and constant) and k experts per token on average:

- load of an expert: share of the scored tokens that chose it; the loads of a layer sum to k.
- load CV: coefficient of variation, the population standard deviation of the loads over their mean; 0 is even.
- entropy: of the distribution load / k over the experts, divided by ln E; 1 is even, 0 is one expert for everything.
- router entropy: mean entropy, in nats, of the router's softmax over the E experts for one token; low is confident.
- dead expert: its load is below 1 % of an even share, k / E.

Zero-computation experts are experts like the others here. The balance loss of MoE++ pulls them to 1 / tau times the
load of an FFN expert, so at tau < 1 even its optimum has a load CV above 0; `ffn_load_cv` is over FFN experts only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from ava_core.models.routing.statistics import DEAD_SHARE

KINDS = ("ffn", "zero", "copy", "constant")


@dataclass(kw_only=True)
class LayerCounts:
    """What the router of one layer did with the scored tokens.

    Attributes:
        chosen: tokens that chose each expert, E integers.
        router_entropy: entropy of the router's distribution, in nats, summed over the tokens.
    """

    chosen: list[int]
    router_entropy: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LayerUtilisation:
    """One layer's figures; see the module's docstring for what they mean.

    Attributes:
        layer: its index, from 0.
        load: of each expert, E numbers.
        load_cv, ffn_load_cv, entropy, router_entropy: as defined above.
        experts_per_token: k.
        ffn_experts_per_token: of the k, FFN experts; zero-computation experts, the rest, cost next to nothing.
        dead_experts: indices of the dead ones.
    """

    layer: int
    load: list[float]
    load_cv: float
    ffn_load_cv: float
    entropy: float
    router_entropy: float
    experts_per_token: float
    ffn_experts_per_token: float
    dead_experts: list[int]

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""
        return asdict(self)


def expert_kinds(config: PreTrainedConfig) -> list[str]:
    """The kind of each of the E experts, in their order."""
    counts = (config.num_ffn_experts, config.num_zero_experts, config.num_copy_experts, config.num_constant_experts)
    return [kind for kind, count in zip(KINDS, counts, strict=True) for _ in range(count)]


def describe_layer(layer: int, counts: LayerCounts, tokens: int, num_ffn_experts: int) -> LayerUtilisation:
    """A layer's figures from its counts over `tokens` scored tokens."""
    load_E = np.asarray(counts.chosen, np.float64) / tokens
    per_token = float(load_E.sum())
    share_E = load_E / per_token
    positive = share_E[share_E > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    return LayerUtilisation(
        layer=layer,
        load=load_E.tolist(),
        load_cv=_variation(load_E),
        ffn_load_cv=_variation(load_E[:num_ffn_experts]),
        entropy=entropy / np.log(len(load_E)) if len(load_E) > 1 else 1.0,
        router_entropy=counts.router_entropy / tokens,
        experts_per_token=per_token,
        ffn_experts_per_token=float(load_E[:num_ffn_experts].sum()),
        dead_experts=np.flatnonzero(share_E < DEAD_SHARE / len(load_E)).tolist(),
    )


def _variation(load: np.ndarray) -> float:
    """Coefficient of variation; 0 where nothing is loaded."""
    mean = load.mean()
    return float(load.std() / mean) if mean > 0 else 0.0


def summarise(layers: list[LayerUtilisation]) -> dict[str, float]:
    """The figures of the whole model: means over its layers, and the number of dead experts in all of them."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(layer, name) for layer in layers]))

    return {
        "expert_load_cv": mean("load_cv"),
        "expert_entropy": mean("entropy"),
        "dead_experts": sum(len(layer.dead_experts) for layer in layers),
        "experts_per_token": mean("experts_per_token"),
        "ffn_experts_per_token": mean("ffn_experts_per_token"),
        "ffn_load_cv": mean("ffn_load_cv"),
        "router_entropy": mean("router_entropy"),
    }
