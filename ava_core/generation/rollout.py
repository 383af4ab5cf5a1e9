"""Routing replay: a rollout's routes, for the training pass over its tokens. Shapes: see `ava_core.models.shapes`.

Decoding and training compute a token's logits in different ways (one token against a cache, all at once), and a router
may send a token elsewhere for a rounding error. Replaying the rollout's routes keeps the policy that is trained the one
that acted (arXiv 2510.11370).

    with record_routes(model) as rollout:
        sequences = model.generate(prompts, do_sample=True)
    output = model(sequences[:, :-1], routes=rollout.routes(sequences))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ava_core.models.routing import Routes


class Rollout:
    """The token ids of a model's forward passes, and to which experts each layer routed them."""

    def __init__(self) -> None:
        self._input_ids: list[Tensor] = []
        self._routes: list[tuple[Routes, ...]] = []

    def append(self, input_ids_BS: Tensor, routes: tuple[Routes, ...]) -> None:
        """Add a pass; its positions follow those of the passes before."""
        self._input_ids.append(input_ids_BS)
        self._routes.append(routes)

    def routes(self, sequences_BS: Tensor) -> tuple[Routes, ...]:
        """Per layer, the routes of all tokens that were read: of `generate`'s result all but the last position.

        Raises:
            ValueError: nothing was recorded, or the model didn't read these sequences from left to right. Beam search
                and assisted decoding go back and choose another beginning, so what they read isn't what they return.
        """
        if not self._input_ids:
            raise ValueError("rollout: must hold a forward pass before its routes are asked for")
        read_BS = torch.cat(self._input_ids, dim=1)
        if not torch.equal(read_BS, sequences_BS[:, : read_BS.shape[1]]):
            raise ValueError("sequences: must begin with the ids that the model read, in greedy or sampled decoding")
        return tuple(_join(passes, read_BS.shape[0]) for passes in zip(*self._routes, strict=True))


@contextmanager
def record_routes(model: PreTrainedModel) -> Iterator[Rollout]:
    """Record the routes of every forward pass of `model`, an `EnhancedMoEForCausalLM`, inside the block."""
    rollout = Rollout()

    def ask(_module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "output_routes": True}

    def keep(_module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        rollout.append(args[0] if args else kwargs["input_ids"], output["routes"])

    hooks = [
        model.register_forward_pre_hook(ask, with_kwargs=True),
        model.register_forward_hook(keep, with_kwargs=True),
    ]
    try:
        yield rollout
    finally:
        for hook in hooks:
            hook.remove()


def _join(passes: tuple[Routes, ...], batch: int) -> Routes:
    """One layer's routes over all positions, from those of consecutive passes."""

    def joined(name: str) -> Tensor:
        parts = [getattr(routes, name).unflatten(0, (batch, -1)) for routes in passes]
        return torch.cat(parts, dim=1).flatten(0, 1)

    return Routes(expert_ids_TK=joined("expert_ids_TK"), used_TK=joined("used_TK"), selected_TK=joined("selected_TK"))
