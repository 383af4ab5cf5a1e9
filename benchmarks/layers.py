"""Where a training step on the CPU spends its time: alternatives for one job, timed in turn in one process.

Usage: make bench, or python -m benchmarks.layers [--rounds N] [--threads N] [--groups GROUP ...]

Prints the median of each alternative and its ratio to the first one: median and quartiles over rounds. Sizes are those
of a small model: 16 sequences of 256 tokens, hidden 256, 8 experts of 256, top-2, bfloat16 weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from ava_core.config.train import TrainConfig
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.attention import attend, attend_by_products
from ava_core.models.configuration import EXPERTS_IMPLEMENTATIONS
from ava_core.models.experts import FFNExperts
from ava_core.models.moe import MoELayer
from ava_core.models.routing import build_router
from ava_core.models.routing import router as routing_module
from ava_core.training.optimizers import build_optimizer
from ava_core.training.process import prepare
from benchmarks.report import paired_ratio

SEQUENCES, LENGTH = 16, 256
CONFIG = EnhancedMoEConfig(vocab_size=2048)


def experts(implementation: str) -> Callable[[], None]:
    """Forward and backward of the FFN experts of one layer."""
    config = EnhancedMoEConfig(vocab_size=2048, experts_implementation=implementation)
    torch.manual_seed(0)
    layer = FFNExperts(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    layer = layer.bfloat16()
    x = torch.randn(SEQUENCES * LENGTH, config.hidden_size).bfloat16().requires_grad_()
    router = build_router(config)

    def run() -> None:
        # Other group sizes in each round, as in training.
        routing = router(torch.randn(SEQUENCES * LENGTH, config.num_experts))
        layer(x, routing).sum().backward()

    return run


ATTENTION: dict[str, Callable[..., Tensor]] = {
    "chosen": attend,
    "products": attend_by_products,
    "fused": partial(F.scaled_dot_product_attention, is_causal=True),
}


def attention(name: str) -> Callable[[], None]:
    """Forward and backward of causal attention in bfloat16: as training chooses it, explicit products, PyTorch's."""
    shape = (SEQUENCES, CONFIG.num_attention_heads, LENGTH, CONFIG.head_dim)
    q, k, v = (torch.randn(shape).bfloat16().requires_grad_() for _ in range(3))

    def run() -> None:
        ATTENTION[name](q, k, v, None).sum().backward()

    return run


def statistics_of_routing(measured: bool) -> Callable[[], None]:
    """Forward and backward of a whole mixture, with or without its statistics; what the losses need stays."""
    torch.manual_seed(0)
    layer = MoELayer(CONFIG, 0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    layer = layer.bfloat16()
    x = torch.randn(SEQUENCES, LENGTH, CONFIG.hidden_size).bfloat16().requires_grad_()
    grad = torch.randn_like(x)
    nothing = torch.zeros(())
    # Both are patched, so that patching costs both the same.
    entropy = routing_module.mean_entropy if measured else lambda *_: nothing
    measure = routing_module.RoutingStatistics.measure if measured else lambda **_: None

    def run() -> None:
        with (
            mock.patch.object(routing_module, "mean_entropy", entropy),
            mock.patch.object(routing_module.RoutingStatistics, "measure", staticmethod(measure)),
        ):
            layer(x)[0].backward(grad)

    return run


def optimizer(name: str) -> Callable[[], None]:
    """One update of all parameters of a small model."""
    model = EnhancedMoEForCausalLM(CONFIG).bfloat16()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return build_optimizer(model, TrainConfig(optimizer=name)).step


GROUPS: dict[str, dict[str, Callable[[], Callable[[], None]]]] = {
    "experts": {name: partial(experts, name) for name in EXPERTS_IMPLEMENTATIONS if name != "auto"},
    "attention": {name: partial(attention, name) for name in ATTENTION},
    "statistics": {"without": partial(statistics_of_routing, False), "with": partial(statistics_of_routing, True)},
    "optimiser": {name: partial(optimizer, name) for name in ("adamw", "muon")},
}


def main() -> None:
    """Time every group and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description="Time parts of a training step.")
    parser.add_argument(
        "--rounds", type=int, default=15, help="timed rounds of each alternative (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="which parts to time")
    flags = parser.parse_args()
    prepare(flags.threads, 0)
    print(f"torch {torch.__version__}, {flags.threads} threads, {flags.rounds} rounds in turn; milliseconds, median")
    for group in flags.groups:
        runs = {name: make() for name, make in GROUPS[group].items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(flags.rounds + 2):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                if turn >= 2:  # the first rounds build oneDNN's primitives
                    times[name].append(1e3 * (time.perf_counter() - started))
        first = next(iter(times.values()))
        for name, values in times.items():
            ratio = paired_ratio(values, first)
            print(
                f"{group:<10} {name:<11} {statistics.median(values):>8.2f}  x {ratio.median:.3f}"
                f"  ({ratio.low:.3f} .. {ratio.high:.3f})"
            )


if __name__ == "__main__":
    main()
