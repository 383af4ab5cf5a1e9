"""Types of the weights in training, and the scale that keeps float16's gradients in its range."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ava_core.config.precision import TORCH_NAMES
from ava_core.config.train import TrainConfig
from ava_core.errors import AvaError, ConfigError

FIRST_SCALE = 2.0**16
LEAST_SCALE = 1.0
GROWTH_INTERVAL = 1000
"""Updates in a row without overflow after which the scale is doubled."""


def weight_dtype(config: TrainConfig) -> torch.dtype:
    """Type of weights, activations and products; the updates go to float32 masters of the weights."""
    return getattr(torch, TORCH_NAMES[config.precision])


def float16_is_supported() -> bool:
    """Whether the products of this machine's device take float16."""
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().is_fp16_supported())


def require_support(config: TrainConfig) -> None:
    """Refuse a precision that this machine can't compute in.

    Raises:
        ConfigError: it can't.
    """
    if config.precision == "fp16" and not float16_is_supported():
        raise ConfigError("train.precision = fp16: this CPU has no float16 products: use bf16")


def set_weight_dtype(model: nn.Module, dtype: torch.dtype, *, accumulated: bool) -> None:
    """Cast the parameters, not the buffers; gradients that are `accumulated` over micro-batches stay in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        if accumulated and parameter.requires_grad:
            parameter.grad_dtype = torch.float32


def scale_exhausted(scale: float) -> AvaError:
    """The end of a training in float16 whose loss scale can't be lowered any more."""
    return AvaError(
        f"train.precision = fp16: loss or gradient is no finite number even at a loss scale of {scale:g}: use bf16, or"
        " lower train.learning_rate"
    )


class LossScaler:
    """Dynamic loss scale (mixed precision, arXiv 1710.03740, section 3.2): halved when gradients overflow, and doubled
    after `growth_interval` updates without.

    DeepSpeed has its own for ZeRO 1 to 3; this one is for stage 0, where our optimisers keep the masters.
    """

    def __init__(self, scale: float = FIRST_SCALE, growth_interval: int = GROWTH_INTERVAL) -> None:
        self.scale = scale
        self.growth_interval = growth_interval
        self._good_updates = 0

    def update(self, overflowed: bool) -> None:
        """Take in whether a step's gradients overflowed.

        Raises:
            AvaError: they did though the scale can't be lowered any more.
        """
        if not overflowed:
            self._good_updates += 1
            if self._good_updates == self.growth_interval:
                self.scale, self._good_updates = self.scale * 2, 0
            return
        if self.scale <= LEAST_SCALE:
            raise scale_exhausted(self.scale)
        self.scale, self._good_updates = max(self.scale / 2, LEAST_SCALE), 0

    def state_dict(self) -> dict[str, Any]:
        """What later scales depend on."""
        return {"scale": self.scale, "good_updates": self._good_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.scale, self._good_updates = state["scale"], state["good_updates"]
