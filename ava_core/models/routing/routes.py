"""Recorded routes: which experts each token went to, to be replayed later. Shapes: see `shapes`.

One primitive serves two purposes. Under gradient checkpointing the recomputation replays what the forward pass
recorded, so a token can't drift to another expert between the two; and a training pass can reuse the routes that a
rollout took (rollout routing replay, arXiv 2510.11370). A replay repeats the selection and the capacity dropping; gate
values are computed from the current logits at the recorded experts, so gradients flow as always.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Routes:
    """Where the tokens of one layer went; holds no gradients.

    Attributes:
        expert_ids_TK: int64, distinct within a token.
        used_TK: bool; False where the slot is unused or was dropped for capacity.
        selected_TK: bool; what the router chose, before any dropping.
    """

    expert_ids_TK: Tensor
    used_TK: Tensor
    selected_TK: Tensor


@dataclass(slots=True)
class RouteTape:
    """What a router records into when it is empty, and replays when it is filled. One per layer and pass."""

    routes: Routes | None = None
