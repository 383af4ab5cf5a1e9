"""Optimisers that keep float32 masters of weights in half precision.

A weight in bfloat16 or float16 is the rounded copy of a float32 master, which takes the updates: many of them are too
small to move a rounded weight (mixed precision, arXiv 1710.03740, section 3.1). Under ZeRO 1, 2 and 3 DeepSpeed keeps
the masters, and what reaches the optimiser is float32 already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

HALF = (torch.bfloat16, torch.float16)


class MasteredOptimizer(Optimizer, ABC):
    """What all our optimisers share: the masters, and a state that is saved and loaded to the bit.

    What is ours of the state is float32 (or wider), with `master` where there is one; all of it goes through
    `state_dict`, so a resumed run is bit-exact.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update([p for p in group["params"] if p.grad is not None], group)
        return loss

    @abstractmethod
    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of one group, all of which have gradients."""

    def master(self, parameter: Tensor) -> Tensor:
        """The exact weight: the float32 master of a rounded one, else the parameter itself."""
        if parameter.dtype not in HALF:
            return parameter
        state = self.state[parameter]
        if "master" not in state:
            state["master"] = parameter.detach().float()
        return state["master"]

    def measured(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """What is measured and exported of a parameter of `group`: an average, where the optimiser keeps one."""
        return self.master(parameter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round the state to the type of the parameters; here it keeps its own."""
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, parameter in zip(ids, parameters, strict=True):
            for name, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.detach().clone().to(parameter.device)


class OnMasters(MasteredOptimizer):
    """Any optimiser of torch or of another library that treats its groups apart, run on the masters.

    Groups and state are kept here, so that they are saved, loaded and changed (by schedules, for one) as those of our
    own optimisers are. `inner` gets them for the time of an update.

    Args:
        inner: an optimiser over the model's own parameters that hasn't made a step.
    """

    def __init__(self, inner: Optimizer) -> None:
        super().__init__([{**group} for group in inner.param_groups], inner.defaults)
        self.inner = inner
        inner.param_groups = []

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        borrowed = {**group, "params": [self._lend(p) for p in parameters]}
        self.inner.param_groups = [borrowed]
        self.inner.step()
        self.inner.param_groups = []
        for p in parameters:
            self._take_back(p)
        # Some count their steps in the group.
        group.update({name: value for name, value in borrowed.items() if name != "params"})

    def _lend(self, parameter: Tensor) -> Tensor:
        """The master, with gradient and state as the inner optimiser expects them."""
        master = self.master(parameter)
        state = {name: value for name, value in self.state[parameter].items() if name != "master"}
        if state:  # optimisers begin where they find none
            self.inner.state[master] = state
        if master is not parameter:
            master.grad = gradient(parameter).to(master.dtype)
        return master

    def _take_back(self, parameter: Tensor) -> None:
        master = self.master(parameter)
        self.state[parameter].update(self.inner.state.pop(master, {}))
        if master is not parameter:
            master.grad = None
            parameter.copy_(master)


def gradient(parameter: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None  # `step` leaves the others out
    return parameter.grad


def exact_state_dict(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The model's state, in place of the rounded weights what is exported of them; tied weights stay tied."""
    exact = {}
    if isinstance(optimizer, MasteredOptimizer):
        exact = {
            p.data_ptr(): optimizer.measured(p, group) for group in optimizer.param_groups for p in group["params"]
        }
    return {name: exact.get(value.data_ptr(), value) for name, value in model.state_dict().items()}


@contextmanager
def measured_weights(optimizer: Optimizer) -> Iterator[None]:
    """Within it, the parameters are what is measured, rounded to their types; afterwards the bits that they were.

    All ranks of stage 0 hold the same state, so none needs to hear of it from another.
    """
    saved: dict[Tensor, Tensor] = {}
    if isinstance(optimizer, MasteredOptimizer):
        with torch.no_grad():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    measured = optimizer.measured(p, group)
                    if measured is not optimizer.master(p):
                        saved[p] = p.detach().clone()
                        p.copy_(measured)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, bits in saved.items():
                p.copy_(bits)
