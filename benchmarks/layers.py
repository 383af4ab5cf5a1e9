"""Where a training step on the CPU spends its time: alternatives for one job, timed in turn in one process.

Usage: make bench, or python -m benchmarks.layers [--rounds N] [--threads N]

Prints the median of each alternative and its ratio to the first one. Sizes are those of `cpu/tiny`: 16 sequences of 256
tokens, hidden 256, 8 experts of 256, top-2, bfloat16 products.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.attention import attend
from ava_core.models.experts import FFNExperts
from ava_core.models.routers import build_router
from ava_core.training.optimizers import build_optimizer

SEQUENCES, LENGTH = 16, 256
CONFIG = EnhancedMoEConfig(vocab_size=2048)


def experts(implementation: str) -> Callable[[], None]:
    """Forward and backward of the FFN experts of one layer."""
    config = EnhancedMoEConfig(vocab_size=2048, experts_implementation=implementation)
    torch.manual_seed(0)
    layer = FFNExperts(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    x = torch.randn(SEQUENCES * LENGTH, config.hidden_size, requires_grad=True)
    routing = build_router(config)(torch.randn(SEQUENCES * LENGTH, config.num_experts))

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            layer(x, routing).sum().backward()

    return run


def attention(fused: bool) -> Callable[[], None]:
    """Forward and backward of causal attention in bfloat16."""
    shape = (SEQUENCES, CONFIG.num_attention_heads, LENGTH, CONFIG.head_dim)
    q, k, v = (torch.randn(shape).bfloat16().requires_grad_() for _ in range(3))

    def run() -> None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True) if fused else attend(q, k, v, None)
        out.sum().backward()

    return run


def optimizer(name: str) -> Callable[[], None]:
    """One update of all parameters of `cpu/tiny`."""
    model = EnhancedMoEForCausalLM(CONFIG)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return build_optimizer(model, name, 1e-3).step


GROUPS: dict[str, dict[str, Callable[[], Callable[[], None]]]] = {
    "experts": {name: (lambda name=name: experts(name)) for name in ("looped", "grouped_mm", "dense")},
    "attention": {"explicit": lambda: attention(False), "fused": lambda: attention(True)},
    "optimiser": {name: (lambda name=name: optimizer(name)) for name in ("adamw", "muon")},
}


def main() -> None:
    """Time every group and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description="Time parts of a training step.")
    parser.add_argument(
        "--rounds", type=int, default=15, help="timed rounds of each alternative (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    print(f"torch {torch.__version__}, {flags.threads} threads, {flags.rounds} rounds in turn; milliseconds, median")
    for group, makers in GROUPS.items():
        runs = {name: make() for name, make in makers.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(flags.rounds + 2):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                if turn >= 2:  # the first rounds build oneDNN's primitives
                    times[name].append(1e3 * (time.perf_counter() - started))
        first = statistics.median(next(iter(times.values())))
        for name, values in times.items():
            median = statistics.median(values)
            print(f"{group:<10} {name:<11} {median:>8.2f}  x {median / first:.2f}")


if __name__ == "__main__":
    main()
