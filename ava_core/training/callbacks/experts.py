"""How evenly the experts are used on the validation split, layer by layer, at each evaluation.

The figures have the names and definitions of `ava_core.evaluation.experts`; those of the training batches are in the
history. Shapes: see `ava_core.models.shapes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ava_core.distributed.ranks import Ranks
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.routing.statistics import DEAD_SHARE
from ava_core.training.callbacks.base import Callback, Row, Run
from ava_core.training.callbacks.records import JsonLines

FILE = "experts.jsonl"


class ExpertLoads(Callback):
    """Writes a row per evaluation to `experts.jsonl`: `step`, and `layers` with the loads of each.

    Listens to the model's passes in evaluation mode that score something, so it costs a training pass nothing.

    Args:
        state: the training's state folder.
    """

    def __init__(self, state: Path) -> None:
        self.rows = JsonLines(state / FILE)
        self._sums: list[tuple[Tensor, Tensor]] = []
        self._tokens = 0
        self._hook: Any = None

    def on_start(self, run: Run) -> None:
        if run.ranks.is_first:
            self.rows.resume(run.step)
        self._hook = run.model.register_forward_hook(self._listen, with_kwargs=True)

    def after_evaluation(self, run: Run, row: Row) -> None:
        layers, tokens = self._sums, self._tokens
        self._sums, self._tokens = [], 0
        if not isinstance(run.model, EnhancedMoEForCausalLM):
            return
        loads = _average(run.ranks, run.model.config, layers, tokens)
        if loads and run.ranks.is_first:
            described = [
                describe(layer, load_E, entropy, run.model.config.num_ffn_experts)
                for layer, (load_E, entropy) in enumerate(loads)
            ]
            self.rows.append({"step": int(row["step"]), "layers": described})

    def on_end(self, run: Run) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.no_grad()
    def _listen(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Add what the routers did in this pass, in proportion to its tokens."""
        if model.training or getattr(output, "loss", None) is None:
            return
        tokens = (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel()
        found = [
            (layer.load_E.double() * tokens, layer.entropy.double() * tokens) for layer in output.router_statistics
        ]
        if self._sums:
            found = [(a + c, b + d) for (a, b), (c, d) in zip(self._sums, found, strict=True)]
        self._sums = found
        self._tokens += tokens


def _average(
    ranks: Ranks, config: EnhancedMoEConfig, layers: list[tuple[Tensor, Tensor]], tokens: int
) -> list[tuple[list[float], float]]:
    """Per layer the loads and the entropy of the router, means over the tokens of all ranks."""
    sums: dict[str, float] = {"tokens": float(tokens)}
    for layer in range(config.num_layers):
        load_E, entropy = layers[layer] if layers else (torch.zeros(config.num_experts), torch.zeros(()))
        sums |= {f"{layer} {expert}": value for expert, value in enumerate(load_E.tolist())}
        sums[f"{layer} entropy"] = float(entropy)
    sums = ranks.mean(sums)
    total = sums["tokens"]
    if not total:  # the trainer measures with another model
        return []
    return [
        ([sums[f"{layer} {expert}"] / total for expert in range(config.num_experts)], sums[f"{layer} entropy"] / total)
        for layer in range(config.num_layers)
    ]


def describe(layer: int, load: list[float], router_entropy: float, num_ffn_experts: int) -> dict[str, Any]:
    """A layer's figures as JSON takes them.

    Args:
        layer: its index.
        load: of each of the E experts, the share of tokens that chose it.
        router_entropy: of the router's distribution, nats, mean over tokens.
        num_ffn_experts: the first N of the E.
    """
    load_E = torch.tensor(load, dtype=torch.float64)
    per_token, E = float(load_E.sum()), len(load)
    share_E = load_E / per_token
    entropy = float(torch.special.entr(share_E).sum())
    return {
        "layer": layer,
        "load": load,
        "load_cv": _variation(load_E),
        "ffn_load_cv": _variation(load_E[:num_ffn_experts]),
        "entropy": entropy / float(torch.tensor(E, dtype=torch.float64).log()) if E > 1 else 1.0,
        "router_entropy": router_entropy,
        "experts_per_token": per_token,
        "ffn_experts_per_token": float(load_E[:num_ffn_experts].sum()),
        "dead_experts": (share_E < DEAD_SHARE / E).nonzero().flatten().tolist(),
    }


def _variation(load_E: Tensor) -> float:
    mean = float(load_E.mean())
    return float(load_E.std(correction=0)) / mean if mean > 0 else 0.0
