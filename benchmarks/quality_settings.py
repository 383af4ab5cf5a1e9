"""What the quality benchmark trains: settings by time and text, as they were found (see LOG.md)."""

from __future__ import annotations

from typing import Any

SWEEP_SECONDS = 30.0
SWEEP = {"adamw": (1.0, 2.0, 4.0, 8.0), "muon": (0.25, 0.5, 1.0, 2.0)}
"""Optimisers, and multiples of their rates that are tried: as many trainings for each."""
MORE_STEPS = 1_000_000
"""Steps of trainings that `max_minutes` ends: more than they reach."""

SMALL = {
    "hidden_size": 128,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "expert_intermediate_size": 128,
    "num_ffn_experts": 8,
    "num_experts_per_token": 2,
    "balance_loss_weight": 0.1,
}


def tiny(seconds: float) -> dict[str, Any]:
    """For tinyshakespeare, 1 MB: after a minute the text has been read often, and what counts is regularisation."""
    model, train = dict(SMALL), _train(seconds)
    if seconds <= 10:
        model |= {"num_layers": 2}
    elif seconds > 100:
        model |= {"dropout": 0.1}
        train |= {"weight_decay": 1.0}
    if seconds > 600:
        model |= {"hidden_size": 192, "num_layers": 4, "expert_intermediate_size": 192, "dropout": 0.2}
    return {"vocab_size": 1024, "model": model, "train": train}


def moe(minutes: float = 5) -> dict[str, Any]:
    """MoE++ on the embedded corpus."""
    model = {**SMALL, "num_ffn_experts": 16, "num_constant_experts": 1}
    train = {**_train(60 * minutes), "sequence_length": 256, "weight_decay": 0.5}
    return {"model": model, "train": train}


def dense(minutes: float = 5) -> dict[str, Any]:
    """One FFN that is as wide as the experts that a token of `moe` passes at most; everything else the same."""
    settings = moe(minutes)
    width = settings["model"]["num_experts_per_token"] * settings["model"]["expert_intermediate_size"]
    none = {"num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0, "gating_residuals": False}
    one = {"num_ffn_experts": 1, "num_experts_per_token": 1, "expert_intermediate_size": width}
    return {**settings, "model": {**settings["model"], **one, **none, "balance_loss_weight": 0.0}}


def optimizer(name: str, factor: float, seconds: float) -> dict[str, Any]:
    """The model of `moe` with an optimiser at a multiple of its rate."""
    settings = moe()
    train = {**_train(seconds), "sequence_length": 256, "optimizer": name}
    rates = {"adamw": {"learning_rate": 0.004, "embedding_learning_rate_ratio": 1.0}, "muon": {}}[name]
    train |= rates
    for rate in ("learning_rate", "adam_learning_rate"):
        train[rate] *= factor
    if name != "muon":
        train["expert_update_interval"] = 1
    return {**settings, "train": train}


def _train(seconds: float) -> dict[str, Any]:
    return {
        "steps": MORE_STEPS,
        "max_minutes": seconds / 60,
        "sequence_length": 128,
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "learning_rate": 0.01,
        "adam_learning_rate": 0.004,
        "embedding_learning_rate_ratio": 3.0,
        "expert_update_interval": 4,
        "warmup_steps": 10,
        "final_learning_rate_ratio": 0.0,
        "evaluate_every": MORE_STEPS,
        "checkpoint_every": MORE_STEPS,
    }
