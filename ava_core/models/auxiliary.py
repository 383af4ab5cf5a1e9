"""The gradient of the routers' auxiliary losses, for trainers that compute their own loss. Shapes: see `shapes`.

The model's own loss contains them. A trainer that computes another loss from the logits, log-probabilities or scores
(TRL's trainers do) would train without load balancing. So each router attaches its losses to its gate values: this is
the identity in the forward pass; in the backward pass the losses get a gradient of their own, whatever the gradient of
the gate values (DeepSeek's AddAuxiliaryLoss, Megatron's MoEAuxLossAutoScaler). Where the model's own loss is
differentiated, that gradient is part of it already, and the routers add none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ava_core.models.configuration import EnhancedMoEConfig

AUXILIARY_LOSSES = ("balance_loss", "router_z_loss", "router_diversity")
"""Their names in outputs and in `loss_parts`; the configuration has a `..._weight` for each."""


class AuxiliaryWeights(Mapping[str, float]):
    """A live view of the configuration's auxiliary loss weights: a change there is in force from the next pass."""

    def __init__(self, config: EnhancedMoEConfig):
        self._config = config

    def __getitem__(self, name: str) -> float:
        if name not in AUXILIARY_LOSSES:
            raise KeyError(name)
        return getattr(self._config, f"{name}_weight")

    def __iter__(self) -> Iterator[str]:
        return iter(AUXILIARY_LOSSES)

    def __len__(self) -> int:
        return len(AUXILIARY_LOSSES)


@dataclass(slots=True)
class AuxiliaryGradient:
    """What the routers of one forward pass add to its backward pass.

    Attributes:
        scale: gradient of each router's weighted loss: 1 / gradient accumulation steps where the trainer divides its
            loss by them, times the loss scale of float16.
        added: whether the routers add it at all.
    """

    scale: float = 1.0
    added: bool = True

    def leave_to(self, loss: Tensor | None) -> None:
        """Add nothing in a backward pass through `loss`, a term of the model's loss: the auxiliary losses are others.

        Autograd runs the hook on `loss` before the backward of any layer, because the loss was computed after all of
        them. (torch.compile can't hold the hook in its graph: there the loss that the model computed is assumed to be
        the one that is differentiated.)

        A wrapper that passes all outputs through one function of its own makes every output part of every backward
        pass, without a gradient (`_DDPSink`, where DistributedDataParallel looks for unused parameters): such a pass
        is not one through `loss`.
        """
        if loss is not None and loss.requires_grad and not torch.compiler.is_compiling():
            loss.register_hook(self._leave)

    def _leave(self, gradient: Tensor | None) -> None:
        if gradient is not None:
            self.added = False


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights_TK: Tensor, loss: Tensor, gradient: AuxiliaryGradient) -> Tensor:
        ctx.gradient, ctx.like = gradient, loss.new_empty(())
        return weights_TK.view_as(weights_TK)

    @staticmethod
    def backward(ctx, grad_TK: Tensor):
        added = ctx.gradient.added
        return grad_TK, torch.full_like(ctx.like, ctx.gradient.scale) if added else None, None


def add_auxiliary_gradient(weights_TK: Tensor, loss: Tensor, gradient: AuxiliaryGradient) -> Tensor:
    """Identity on the gate values; its backward pass also gives the scalar `loss` the gradient `gradient.scale`."""
    return _AddGradient.apply(weights_TK, loss, gradient)


def weighted_sum(weights: Mapping[str, float], losses: Mapping[str, Tensor]) -> Tensor:
    """Sum of weight * loss over at least one loss, a scalar; a loss without a weight counts 0."""
    return torch.stack([weights.get(name, 0.0) * loss for name, loss in losses.items()]).sum()


class TrainerStep(NamedTuple):
    """The trainer's current step, as a model sees it.

    Attributes:
        scale: what the trainer multiplies its loss by: 1 / gradient accumulation steps, times float16's loss scale.
        number: optimiser steps before it; None where no trainer is known.
    """

    scale: float = 1.0
    number: int | None = None


def adopt_trainer(config: EnhancedMoEConfig) -> TrainerStep:
    """Find HF's Trainer, or a subclass, on the call stack: the loss scale and number of its current step.

    A trainer passes neither to the model, so both are read from the `self` of its `training_step`, in a frame above.
    A `router_aux_loss_coef` among its arguments becomes the configuration's, as TRL's SFTTrainer has it. Without such
    a trainer the scale is that of Accelerate's gradient accumulation, if it is imported, else 1.
    """
    trainer = _trainer_above(sys._getframe(1))
    if trainer is None:
        accelerate = sys.modules.get("accelerate.state")  # a loop of one's own with Accelerate divides by `num_steps`
        return TrainerStep(1.0 / accelerate.GradientState().num_steps) if accelerate else TrainerStep()
    coefficient = getattr(trainer.args, "router_aux_loss_coef", None)
    if coefficient is not None:
        config.router_aux_loss_coef = coefficient
    scale = _loss_scale(trainer.accelerator) / trainer.current_gradient_accumulation_steps
    return TrainerStep(scale, trainer.state.global_step)


def _trainer_above(frame: FrameType | None) -> Any:
    while frame is not None:
        if frame.f_code.co_name == "training_step":
            trainer = frame.f_locals.get("self")
            if hasattr(trainer, "current_gradient_accumulation_steps"):
                return trainer
        frame = frame.f_back
    return None


def _loss_scale(accelerator: Any) -> float:
    if accelerator.scaler is not None:
        return accelerator.scaler.get_scale()
    wrapped = getattr(accelerator, "deepspeed_engine_wrapped", None)
    optimizer = wrapped.engine.optimizer if wrapped is not None else None
    return float(getattr(optimizer, "cur_scale", None) or 1.0)
