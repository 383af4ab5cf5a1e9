"""Exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn


class Ema:
    """avg <- d avg + (1 - d) weights, in float32 (or wider), from the first update on, which copies.

    d is min(decay, (1 + n) / (10 + n)) at the n-th update after the copy. Not a division by 1 - decay^n, which corrects
    for an average that began at zero: with that, a run shorter than 1 / (1 - decay) averages all its weights alike, the
    fresh ones too. Here the average spans about the last tenth of the run until `decay` takes over.

    Only the first rank needs to hold it; the others call `swapped` alone.

    Args:
        decay: share of the average that stays at each update, in (0, 1).
        every: steps between updates.
        latest: names that are kept at their latest value and not averaged: buffers such as the routers' expert bias,
            which follow the loads by steps of a fixed size.
    """

    def __init__(self, decay: float, every: int = 1, latest: Collection[str] = ()) -> None:
        self.decay, self.every, self.latest = decay, every, frozenset(latest)
        self.updates = 0
        """How many there were, the copy included."""
        self.average: dict[str, Tensor] = {}
        """By name; tied weights share their average as they share their memory."""

    @torch.no_grad()
    def update(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights after `step` (from 1), if it is one of every `every`.

        Args:
            weights: the exact ones, by the names of the model's state: float32 masters where training rounds them. The
                same names at every call. They may change afterwards: nothing of them is kept.
        """
        if step % self.every:
            return
        self.updates += 1
        if not self.average:
            self.average = _copies(weights)
            return
        d = min(self.decay, self.updates / (9 + self.updates))
        seen, averages, sources = set(), [], []
        for name, held in self.average.items():
            source = weights[name].detach()
            if held.data_ptr() in seen and held.numel():  # tied
                continue
            seen.add(held.data_ptr())
            if name in self.latest or not held.is_floating_point():
                held.copy_(source)
            else:
                averages.append(held)
                sources.append(source.to(held.dtype))
        if averages:
            torch._foreach_lerp_(averages, sources, 1 - d)

    @contextlib.contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Within it, `model` holds the average, rounded to its types; afterwards, the bits that it held before.

        Before the first update it changes nothing. With several ranks all must enter, and take the first one's average;
        the weights may be partitioned (ZeRO 3).
        """
        ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        held = bool(self.average)
        if ranks > 1:
            answer = [held]
            distributed.broadcast_object_list(answer, src=0)
            held = answer[0]
        if not held:
            yield
            return
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        saved: dict[str, Tensor] = {}
        with _whole(model), torch.no_grad():
            for name, tensor in tensors.items():
                if ranks > 1 or name in self.average:
                    saved[name] = tensor.detach().clone()
                if name in self.average:
                    tensor.copy_(self.average[name])
            if ranks > 1:
                for name in saved:
                    distributed.broadcast(tensors[name].data, src=0)
        try:
            yield
        finally:
            with _whole(model), torch.no_grad():
                for name, bits in saved.items():
                    tensors[name].copy_(bits)

    def state_dict(self) -> dict[str, Any]:
        """The average itself, not a copy, and the count."""
        return {"updates": self.updates, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the tensors are copied."""
        self.updates = state["updates"]
        self.average = _copies(state["average"])


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, floating ones in float32 or wider; what shares memory keeps sharing."""
    copies: dict[tuple, Tensor] = {}
    result = {}
    for name, value in weights.items():
        key = (value.data_ptr(), value.shape, value.dtype) if value.numel() else (name,)
        if key not in copies:
            wide = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
            copies[key] = value.detach().to(wide, copy=True)
        result[name] = copies[key]
    return result


def _whole(model: nn.Module) -> contextlib.AbstractContextManager:
    """Within it the weights are whole on every rank, and what the first rank writes is partitioned afterwards."""
    partitioned = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not partitioned:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0)
