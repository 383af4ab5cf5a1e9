"""Schedule-free AdamW (arXiv 2405.15682), as its authors' package has it.

Gradients are taken at y, between z, which AdamW's steps move, and x, the average of z. What a checkpoint holds is y
and z, to the bit; what is measured and exported is x = y + (1 - 1 / beta1) (z - y). The package's own switch between
the two (`train` and `eval`) would round y, so that a run's bytes would depend on when it was measured.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ava_core.config.train import TrainConfig
from ava_core.training.optimizers.masters import OnMasters


class ScheduleFreeAdamW(OnMasters):
    """`schedulefree.AdamWScheduleFree` on masters. State: `z`, `exp_avg_sq`, and `master`, which is y."""

    def measured(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The average x; before the first step the weight itself."""
        y, state = self.master(parameter), self.state[parameter]
        return y.lerp(state["z"], 1 - 1 / group["betas"][0]) if "z" in state else y


def build(groups: list[dict[str, Any]], config: TrainConfig) -> ScheduleFreeAdamW:
    """Schedule-free AdamW over `groups`, with the betas of the configuration; the warm-up is the schedule's."""
    from schedulefree import AdamWScheduleFree

    # One parameter at a time: together they would take a copy of all gradients more.
    inner = AdamWScheduleFree(
        groups, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), foreach=False
    )
    inner.train()
    return ScheduleFreeAdamW(inner)
