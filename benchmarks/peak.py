"""The bf16 peak of this machine on matrix products of the step's own shapes, measured in turn with the subjects."""

from __future__ import annotations

from typing import Any

import torch

from ava_core.training.process import prepare
from ava_core.training.speed.flops import products
from ava_core.training.speed.peak import operands, rates, run
from benchmarks.workload import Workload


class Peak:
    """Runs each product `steps` times per turn, into a preallocated buffer, and keeps the best time of each."""

    def __init__(self, workload: dict[str, Any], threads: int):
        prepare(threads, 0)
        work = Workload(**workload)
        self.products = products(work)
        self.operands = [operands(product, work.device, torch.bfloat16) for product in self.products]
        self.best = [float("inf")] * len(self.products)

    def turn(self, steps: int) -> dict[str, float]:
        """Return `mean` and `best` so far, in FLOP/s; see `rates`."""
        for index, given in enumerate(self.operands):
            self.best[index] = min(self.best[index], *(run(given) for _ in range(steps)))
        return rates(self.products, self.best)
