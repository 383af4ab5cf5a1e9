"""AdamW that keeps float32 masters of weights in half precision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ava_core import kernels

HALF = (torch.bfloat16, torch.float16)


class AdamW(Optimizer):
    """AdamW (arXiv 1711.05101, algorithm 2).

    A weight in bfloat16 or float16 is the rounded copy of a float32 master, which takes the updates: many of them are
    too small to move a rounded weight (mixed precision, arXiv 1710.03740, section 3.1). The state is always float32
    (or wider): `step`, `exp_avg`, `exp_avg_sq`, and `master` where there is one; all of it goes through `state_dict`,
    so a resumed run is bit-exact.

    Args:
        params: parameters or groups of them.
        lr: learning rate of groups that set none.
        betas, eps, weight_decay: as in the paper; the decay is scaled by the learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **defaults: Any,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, **defaults})

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

    def master(self, parameter: Tensor) -> Tensor:
        """The exact weight: the float32 master of a rounded one, else the parameter itself."""
        if parameter.dtype not in HALF:
            return parameter
        state = self.state[parameter]
        if "master" not in state:
            state["master"] = parameter.detach().float()
        return state["master"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round the state to the type of the parameters; here it keeps its own."""
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, parameter in zip(ids, parameters, strict=True):
            for name, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor) and name != "step":
                    self.state[parameter][name] = value.detach().clone().to(parameter.device)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of one group, all of which have gradients."""
        for p in parameters:
            state, master = self.state[p], self.master(p)
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        rest, grads = [], []
        for p in parameters:
            grad = gradient(p)
            if p.is_contiguous() and kernels.usable(p, grad):
                self._update_natively(p, grad, group)
            else:
                rest.append(p)
                grads.append(grad.to(self.master(p).dtype))
        if not rest:
            return
        states = [self.state[p] for p in rest]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [self.master(p) for p in rest],
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=float(group["lr"]),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        for p in rest:
            if p.dtype in HALF:
                p.copy_(self.master(p))

    def _update_natively(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        state["step"] += 1
        kernels.adamw_with_master(
            *(p, grad, state["master"], state["exp_avg"], state["exp_avg_sq"]),
            step=int(state["step"]),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


def gradient(parameter: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None  # `step` leaves the others out
    return parameter.grad


def exact_state_dict(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The model's state with the masters in place of the rounded weights; tied weights stay tied."""
    masters = {}
    if isinstance(optimizer, AdamW):
        masters = {p.data_ptr(): optimizer.master(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: masters.get(value.data_ptr(), value) for name, value in model.state_dict().items()}
