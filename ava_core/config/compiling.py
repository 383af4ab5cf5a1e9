"""What `train.compile` can't be combined with."""

from __future__ import annotations

from ava_core.config.model import ModelConfig
from ava_core.config.train import TrainConfig

TRACEABLE = ("auto", "grouped_mm", "dense")
"""Implementations of the experts that can be traced; the others read sizes from the data, or are opaque."""


def compile_fault(train: TrainConfig, model: ModelConfig) -> str | None:
    """Why these layers can't be compiled, or None."""
    told = "train.compile = true: "
    if train.zero_stage == 3:
        return f"{told}zero_stage = 3 gathers a layer's weights in the middle of its graph: use stage 2, or false"
    if train.gradient_surgery:
        return f"{told}gradient_surgery goes back through each graph twice, a compiled one is gone after once: use one"
    if train.regularization.adaptive:
        return (
            f"{told}regularization.adaptive changes dropout and noise, which are constants of a compiled graph: use"
            " one of them"
        )
    if train.memory_budget is not None:
        return (
            f"{told}memory_budget goes by what layers keep that aren't compiled: leave it out; gradient_checkpointing"
            " is allowed"
        )
    experts = model.experts_implementation
    if experts not in TRACEABLE:
        return f"{told}model.experts_implementation = {experts} can't be traced: use {', '.join(TRACEABLE)}"
    if train.precision != "bf16" and experts != "dense":
        return (
            f"{told}train.precision = {train.precision}: PyTorch traces grouped products in bfloat16 only: use bf16, or"
            " model.experts_implementation = dense"
        )
    return None
