"""Gradient surgery between the main and the auxiliary objective."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


class GradientSurgery:
    """PCGrad (arXiv 2001.06782, algorithm 1) for two objectives: the token losses, and what the routers add.

    Where <g_main, g_aux> < 0 each is projected off the other (by the originals for both) and the two are added; else
    the gradient stays, to the last bit, what the backward pass gave. Over the parameters that both objectives reach
    (the paper's shared parameters): the others have no conflict, and their gradients stay.

    The backward pass of the whole loss gives t = g_main + g_aux, so only g_aux is gathered here, in float32, and
    g_main is t - g_aux. One more pass, through what the auxiliary losses reach: routers, and the layers below them.
    It must come first and leaves the graph whole; the head's loss, which allows one pass only, isn't part of it.

    Calls of the engine, for each step:

        surgery.accumulate(output.aux_loss, scale)        # of each micro-batch, before its backward pass
        engine.backward(output.loss)
        surgery.finish()                                  # when .grad is whole: accumulated, averaged over ranks

    Args:
        model: its trainable parameters are the ones looked at. Nothing of them may be partitioned (ZeRO 0 only).
        group: process group whose ranks share the batch; None: the default one if it was started.
    """

    def __init__(self, model: nn.Module, group: distributed.ProcessGroup | None = None) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._group = group
        self._auxiliary: list[Tensor | None] = [None] * len(self._parameters)

    def accumulate(self, aux_loss: Tensor, scale: float = 1.0) -> None:
        """Add the gradient of one micro-batch's weighted auxiliary loss, before that of its whole loss is taken.

        Args:
            aux_loss: scalar with a graph, the auxiliary part of the loss (`output.aux_loss`).
            scale: what `.grad` is multiplied with when `finish` is called: the micro-batch's share of the step's loss,
                times the loss scale where that is still in the gradients.
        """
        if not (isinstance(aux_loss, Tensor) and aux_loss.requires_grad):  # all weights are 0
            return
        grads = torch.autograd.grad(aux_loss * scale, self._parameters, retain_graph=True, allow_unused=True)
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            if (held := self._auxiliary[i]) is None:
                self._auxiliary[i] = grad.to(torch.float32, copy=True)
            else:
                held += grad

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """Rewrite `.grad` where the objectives conflict, and forget the step.

        Returns:
            gradient_conflict: the cosine between the two gradients; below 0 they were projected. 0 if one is zero.
        """
        auxiliary, self._auxiliary = self._auxiliary, [None] * len(self._parameters)
        self._average(auxiliary)
        pairs = [
            (p.grad, aux)
            for p, aux in zip(self._parameters, auxiliary, strict=True)
            if p.grad is not None and aux is not None
        ]
        if not pairs:
            return {"gradient_conflict": 0.0}
        mains = [total.float() - aux for total, aux in pairs]
        sums = [
            torch.stack([(a.double() * b.double()).sum() for a, b in products]).sum().item()
            for products in (
                zip(mains, (aux for _, aux in pairs), strict=True),
                zip(mains, mains, strict=True),
                ((aux, aux) for _, aux in pairs),
            )
        ]
        dot, main_square, aux_square = sums
        if not main_square * aux_square > 0:  # also when one of them is nan
            return {"gradient_conflict": 0.0}
        if dot < 0:
            for (total, aux), main in zip(pairs, mains, strict=True):
                # (g_main - dot / |g_aux|^2 g_aux) + (g_aux - dot / |g_main|^2 g_main)
                total.copy_(main.mul_(1 - dot / main_square).add_(aux, alpha=1 - dot / aux_square))
        return {"gradient_conflict": dot / (main_square * aux_square) ** 0.5}

    def _average(self, auxiliary: list[Tensor | None]) -> None:
        """Replace each gradient by its mean over the ranks."""
        if not distributed.is_initialized() or (ranks := distributed.get_world_size(self._group)) == 1:
            return
        # A parameter that one rank's batch didn't reach is averaged all the same, or the others would wait for ever.
        device = self._parameters[0].device
        reached = torch.tensor([aux is not None for aux in auxiliary], dtype=torch.uint8, device=device)
        distributed.all_reduce(reached, op=distributed.ReduceOp.MAX, group=self._group)
        for i, (parameter, anywhere) in enumerate(zip(self._parameters, reached.tolist(), strict=True)):
            if not anywhere:
                continue
            held = auxiliary[i]
            held = torch.zeros_like(parameter, dtype=torch.float32) if held is None else held
            distributed.all_reduce(held, group=self._group)
            auxiliary[i] = held.div_(ranks)
