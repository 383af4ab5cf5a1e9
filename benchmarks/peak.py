"""The bf16 peak of this machine on matrix products of the step's own shapes, measured in turn with the subjects."""

from __future__ import annotations

import time
from typing import Any

import torch

from ava_core.training.process import prepare
from benchmarks.flops import Product, products
from benchmarks.workload import Workload

LAUNCHES = {"cpu": 1, "cuda": 20}
"""Products per measurement: on a GPU so many that starting and waiting for them doesn't show."""


class Peak:
    """Runs each product `steps` times per turn, into a buffer that exists, and keeps the best time of each."""

    def __init__(self, workload: dict[str, Any], threads: int):
        prepare(threads, 0)
        work = Workload(**workload)
        self.device = work.device
        self.products = products(work)
        self.operands = [self._operands(product) for product in self.products]
        self.best = [float("inf")] * len(self.products)

    def _operands(self, product: Product) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shapes = (product.rows, product.inner), (product.inner, product.columns), (product.rows, product.columns)
        a, b, out = (torch.randn(shape, device=self.device).to(torch.bfloat16) for shape in shapes)
        return a, b, out

    def turn(self, steps: int) -> dict[str, float]:
        """Return `mean` and `best` so far, in FLOP/s; see `rates`."""
        launches = LAUNCHES[self.device]
        for index, (a, b, out) in enumerate(self.operands):
            for _ in range(steps):
                started = _now(self.device)
                for _ in range(launches):
                    torch.mm(a, b, out=out)
                self.best[index] = min(self.best[index], (_now(self.device) - started) / launches)
        return rates(self.products, self.best)


def rates(measured: list[Product], seconds: list[float]) -> dict[str, float]:
    """`mean`: FLOP/s if all products of a step ran one after the other, each at its best; `best`: of the fastest."""
    flops = sum(product.count * product.flops for product in measured)
    total = sum(product.count * taken for product, taken in zip(measured, seconds, strict=True))
    best = max(product.flops / taken for product, taken in zip(measured, seconds, strict=True))
    return {"mean": flops / total, "best": best}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
