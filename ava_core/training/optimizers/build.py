"""From a name and rates to an optimiser over a model's parameters."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from ava_core.training.optimizers.adamw import AdamW
from ava_core.training.optimizers.muon import Muon
from ava_core.training.optimizers.parameters import is_decayed, is_hidden_matrix

OPTIMIZERS = ("adamw", "muon")


def build_optimizer(
    model: nn.Module,
    name: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    momentum: float = 0.95,
    newton_schulz_steps: int = 5,
    embedding_learning_rate: float | None = None,
) -> Optimizer:
    """Optimiser over the trainable parameters of `model`, each exactly once, tied ones too.

    Args:
        name: "adamw" or "muon"; both keep float32 masters of weights in half precision.
        learning_rate: peak; a schedule scales it.
        weight_decay: of matrices; norms, biases and constants have none.
        betas, eps: of AdamW.
        momentum, newton_schulz_steps: of Muon.
        embedding_learning_rate: with "muon", the peak for everything that AdamW updates; None: the same.

    Raises:
        ValueError: an unknown name, or a value out of range.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer = {name!r}: must be one of {', '.join(OPTIMIZERS)}")
    if learning_rate <= 0:
        raise ValueError(f"learning_rate = {learning_rate}: must be > 0")
    if weight_decay < 0:
        raise ValueError(f"weight_decay = {weight_decay}: must be >= 0")
    groups: dict[tuple[str, bool], dict] = {}
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        algorithm = "muon" if name == "muon" and is_hidden_matrix(key, parameter) else "adamw"
        decayed = is_decayed(key, parameter)
        group = groups.setdefault((algorithm, decayed), {"params": []})
        group["params"].append(parameter)
        group["weight_decay"] = weight_decay if decayed else 0.0
        if name == "muon":
            group["algorithm"] = algorithm
            adamw_rate = embedding_learning_rate or learning_rate
            group["lr"] = learning_rate if algorithm == "muon" else adamw_rate
    if name == "adamw":
        return AdamW(list(groups.values()), lr=learning_rate, betas=betas, eps=eps)
    return Muon(
        list(groups.values()),
        lr=learning_rate,
        momentum=momentum,
        newton_schulz_steps=newton_schulz_steps,
        betas=betas,
        eps=eps,
    )
