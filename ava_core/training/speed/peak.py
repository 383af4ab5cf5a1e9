"""The peak of a device on matrix products of the step's own shapes: what its utilisation is a share of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ava_core.config.model import ModelConfig
from ava_core.config.train import TrainConfig
from ava_core.training.precision import weight_dtype
from ava_core.training.speed.flops import Product, products, step_shapes

LAUNCHES = {"cpu": 1, "cuda": 20}
"""Products per measurement: on a GPU so many that starting and waiting for them doesn't show."""
PASS_FLOPS = {"cpu": 3e10, "cuda": 2e13}
"""Work of one pass over all products, at most: a micro-batch that asks for more is measured with fewer tokens."""
LEAST_TOKENS = 256
RANDOM = 4096
"""Entries of an operand that are drawn; they are repeated. Zeros would let a GPU run faster than real values do."""


def measure_peak(
    model: ModelConfig, train: TrainConfig, vocab_size: int, device: torch.device, seconds: float = 0.3
) -> float:
    """FLOP/s of this process's device if all products of a step ran one after the other, each at its best.

    Takes `seconds`, and a pass over the products more: some 0.1 s. Random numbers stay as they are. Returns 0.0 where
    the products don't fit into the memory that is left.
    """
    shapes = step_shapes(model, train, vocab_size)
    flops = sum(product.flops for product in products(shapes))
    tokens = min(shapes.tokens, max(LEAST_TOKENS, int(shapes.tokens * PASS_FLOPS[device.type] / flops)))
    measured = products(replace(shapes, tokens=tokens))
    try:
        with torch.no_grad():
            given = [operands(product, device, weight_dtype(train)) for product in measured]
            best = [float("inf")] * len(measured)
            until = time.perf_counter() + seconds
            passes = 0
            while passes < 2 or time.perf_counter() < until:
                best = [min(before, run(one)) for before, one in zip(best, given, strict=True)]
                passes += 1
    except torch.OutOfMemoryError:
        return 0.0
    return rates(measured, best)["mean"]


def operands(product: Product, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Both factors of a product, with entries of a normal distribution, and a buffer for the result."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(RANDOM, generator=generator).to(device, dtype)

    def filled(rows: int, columns: int) -> Tensor:
        return drawn.repeat(-(-rows * columns // RANDOM))[: rows * columns].view(rows, columns)

    a, b = filled(product.rows, product.inner), filled(product.inner, product.columns)
    return a, b, torch.empty(product.rows, product.columns, device=device, dtype=dtype)


def run(given: tuple[Tensor, Tensor, Tensor]) -> float:
    """Seconds of one product."""
    a, b, out = given
    launches = LAUNCHES[a.device.type]
    started = _now(a.device)
    for _ in range(launches):
        torch.mm(a, b, out=out)
    return (_now(a.device) - started) / launches


def rates(measured: Sequence[Product], seconds: Sequence[float]) -> dict[str, float]:
    """`mean`: FLOP/s if all products of a step ran one after the other, each at its best; `best`: of the fastest."""
    flops = sum(product.count * product.flops for product in measured)
    total = sum(product.count * taken for product, taken in zip(measured, seconds, strict=True))
    best = max(product.flops / taken for product, taken in zip(measured, seconds, strict=True))
    return {"mean": flops / total, "best": best}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
