"""Time of one mixture against the number of tokens and the number of experts, ours and HF OLMoE's.

Usage: python -m benchmarks.model --scaling

Forward and backward of one layer in bf16, at the workload's width and k. The cost should grow linearly with tokens
and stay flat in the number of experts, for a token passes k of them however many there are. Draws scaling.png.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ava_core.models.moe import MoELayer
from ava_core.training.process import prepare
from benchmarks import hardware, report
from benchmarks.subjects import our_config
from benchmarks.turns import Workers
from benchmarks.workload import Workload

TOKENS = (256, 512, 1024, 2048, 4096, 8192)
EXPERTS = (4, 8, 16, 32, 64)
SUBJECTS = ("ours", "hf_olmoe", "hf_olmoe+kept")


class Layer:
    """Worker: times a layer of any number of experts on any number of tokens; keeps one layer at a time."""

    def __init__(self, name: str, workload: dict[str, Any], threads: int):
        if name == "hf_olmoe":
            torch.set_num_threads(threads)
            torch.manual_seed(0)
        else:
            prepare(threads, 0)
        self.ours = name == "ours"
        self.work = Workload(**workload)
        self._built: tuple[int, Callable[[Tensor], Tensor], nn.Module] | None = None

    def turn(self, tokens: int, experts: int, repeats: int) -> dict[str, float]:
        """Return the least milliseconds of forward and backward among `repeats`."""
        if self._built is None or self._built[0] != experts:
            self._built = None
            self._built = (experts, *self._build(experts))
        _, forward, layer = self._built
        device = self.work.device
        x_BSD = torch.randn(1, tokens, self.work.hidden_size).to(device, torch.bfloat16).requires_grad_()
        grad_BSD = torch.randn_like(x_BSD)
        best = float("inf")
        for _ in range(repeats):
            started = self._now()
            forward(x_BSD).backward(grad_BSD)
            best = min(best, self._now() - started)
            x_BSD.grad = None
            layer.zero_grad(set_to_none=True)
        return {"milliseconds": 1e3 * best}

    def _build(self, experts: int) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
        make = our_layer if self.ours else peer_layer
        forward, layer = make(dataclasses.replace(self.work, experts=experts))
        layer.to(self.work.device, torch.bfloat16).train()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.02)
        return forward, layer

    def _now(self) -> float:
        if self.work.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def our_layer(work: Workload) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """Our mixture without zero-computation experts: (1, T, D) -> (1, T, D)."""
    layer = MoELayer(our_config(work), 0)
    return lambda x_BSD: layer(x_BSD)[0], layer


def peer_layer(work: Workload) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """HF OLMoE's mixture with grouped_mm."""
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(
        hidden_size=work.hidden_size,
        intermediate_size=work.expert_size,
        num_experts=work.experts,
        num_experts_per_tok=work.experts_per_token,
    )
    config._experts_implementation = "grouped_mm"
    layer = OlmoeSparseMoeBlock(config)
    return layer, layer


def measure(
    work: Workload,
    threads: int,
    rounds: int,
    warmup: int,
    tokens: tuple[int, ...] = TOKENS,
    experts: tuple[int, ...] = EXPERTS,
) -> dict[str, Any]:
    """Medians over rounds in milliseconds: `tokens` and `experts` by subject, each {size: milliseconds}."""
    arguments = {"workload": dataclasses.asdict(work), "threads": threads}
    found: dict[str, Any] = {"tokens": {}, "experts": {}}
    with Workers([(name, "benchmarks.scaling:Layer", {"name": name, **arguments}) for name in SUBJECTS]) as workers:
        points = [("tokens", size, {"tokens": size, "experts": work.experts}) for size in tokens]
        points += [("experts", size, {"tokens": work.tokens, "experts": size}) for size in experts]
        given: dict[tuple[str, int], list[dict[str, Any]]] = {(axis, size): [] for axis, size, _ in points}
        for index in range(warmup + rounds):  # all sizes within a round: a slow minute mustn't look like a slow size
            print(f"round {index + 1} of {warmup + rounds}", file=sys.stderr, flush=True)
            for axis, size, point in points:
                answers = workers.ask_each("turn", **point, repeats=2)
                if index >= warmup:
                    given[axis, size].append(answers)
        for (axis, size), rounds_given in given.items():
            for name in workers.alive:
                median = statistics.median(answers[name]["milliseconds"] for answers in rounds_given)
                found[axis].setdefault(name, {})[size] = median
        found["failures"] = dict(workers.failures)
    return found


def growth(times: dict[int, float]) -> float:
    """Time of the largest size over that of the smallest."""
    return times[max(times)] / times[min(times)]


def show(found: dict[str, Any]) -> str:
    """Two tables of milliseconds, and how much the time grew from the first column to the last."""
    parts = []
    for axis in ("tokens", "experts"):
        sizes = sorted(next(iter(found[axis].values())))
        rows = [
            [name, *(f"{times[size]:.2f}" for size in sizes), f"x {growth(times):.2f}"]
            for name, times in found[axis].items()
        ]
        parts.append(report.table([f"ms by {axis}", *map(str, sizes), "grew"], rows))
    return "\n\n".join(parts)


def draw(found: dict[str, Any], work: Workload, path: Path) -> None:
    """Both curves of every subject, with the line of proportional growth beside that of tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    titles = f"{work.experts} experts", f"{work.tokens} tokens"
    for plot, axis, title in zip(axes, ("tokens", "experts"), titles, strict=True):
        for name, times in found[axis].items():
            sizes = sorted(times)
            plot.plot(sizes, [times[size] for size in sizes], marker="o", label=name)
        if axis == "tokens" and (ours := found[axis].get("ours")):
            first, last = min(ours), max(ours)
            plot.plot([first, last], [ours[last] * first / last, ours[last]], "k:", label="proportional")
        plot.set_xscale("log", base=2)
        plot.set_yscale("log" if axis == "tokens" else "linear")
        if axis == "experts":
            plot.set_ylim(bottom=0)
        sizes = sorted(next(iter(found[axis].values())))
        plot.set_xticks(sizes, [str(size) for size in sizes])
        plot.set(xlabel=axis, ylabel="milliseconds, forward and backward", title=f"One layer, {title}")
        plot.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def run(work: Workload, described: dict[str, Any], rounds: int, warmup: int, folder: Path) -> int:
    """Measure, print, draw and keep. Returns 1 if a subject failed."""
    found = measure(work, described["threads"], rounds, warmup)
    print(show(found))
    for reason in found["failures"].values():
        print(f"no figures: {reason}")
    draw(found, work, folder / "scaling.png")
    values = {**found, "workload": dataclasses.asdict(work)}
    report.keep(hardware.slug(described), f"scaling, {work.label}", described, values, folder)
    return 1 if found["failures"] else 0
