"""What the figures of a run say: ratios to peers, memory against theirs, shares of the machine's peak."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Collection, Sequence
from typing import Any

from ava_core.training.speed.flops import training_flops_per_token
from benchmarks import report
from benchmarks.subjects import OURS, parse
from benchmarks.workload import Workload


@dataclasses.dataclass(frozen=True)
class Target:
    """Two subjects, and the ratio of their tokens per second to reach on the usual workload on a CPU of `TARGET_CPU`.

    Attributes:
        above, below: numerator and denominator. A peer's variants, with other settings, are held against it too.
        ratio: to reach; None: compared, and no more.
        kept: to reach where the peer has the allocator's settings; None: the same ratio.
    """

    above: str
    below: str
    ratio: float | None = None
    kept: float | None = None

    def to_reach(self, settings: Collection[str]) -> float | None:
        """The ratio where the denominator has these settings."""
        return self.kept if self.kept is not None and "kept" in settings else self.ratio


TARGETS = (
    Target("ours_vanilla", "hf_olmoe_autocast", 4.0),
    Target("ours_vanilla", "hf_olmoe_bf16", 4.0),
    Target("ours_vanilla", "hf_llama_bf16", 2.0, kept=1.7),
    Target("ours_vanilla", "ours_dense", 0.75),
    Target("ours_moepp", "ours_vanilla", 1.15),
    Target("ours_vanilla", "hf_mixtral_bf16"),
    Target("ours_vanilla", "hf_qwen3_moe_bf16"),
)
TARGET_CPU = "AMX"
"""What a CPU has where these targets hold: its products are 3 to 5 times as fast as without, so that a peer's overhead
is a larger part of its step."""
PEAK_TARGET, MEMORY_TARGET = 0.40, 0.70
DENSE = ("hf_llama_bf16", "ours_dense")
HEADER = ("subject", "tokens/s", "FFN/token", "peak MiB", "over start", "M params", "of mean", "of best", "causal", "")


def ffn_experts(name: str, told: Sequence[float | None], work: Workload) -> float:
    """FFN experts that the average token passed: as our statistics say; a dense network counts as top-k."""
    if parse(name)[0] != "ours_moepp":
        return float(work.experts_per_token)
    return statistics.median(value for value in told if value is not None)


def flops_per_token(name: str, experts: float, work: Workload, *, causal: bool) -> float:
    """Of a subject's training step; see `training_flops_per_token`."""
    base, _ = parse(name)
    if base in DENSE:
        return training_flops_per_token(work, work.experts_per_token, 0, causal=causal)
    if base == "ours_moepp":
        routed = work.experts + work.zero_computation_experts
        return training_flops_per_token(work, experts, routed, work.constant_experts, causal=causal)
    return training_flops_per_token(work, experts, work.experts, causal=causal)


def add_shares(measured: dict[str, Any], work: Workload) -> None:
    """Add to every subject its model FLOPs per second (`_causal`: useful attention only) and shares of both peaks."""
    for name, figures in measured["subjects"].items():
        rate = statistics.median(figures["tokens_per_second"])
        for suffix, causal in (("", False), ("_causal", True)):
            flops = rate * flops_per_token(name, figures["ffn_experts_per_token"], work, causal=causal)
            figures[f"flops_per_second{suffix}"] = flops
            for peak, value in (measured["peak"] or {}).items():
                figures[f"share_of_{peak}_peak{suffix}"] = flops / value


def ratios(measured: dict[str, Any], work: Workload) -> list[dict[str, Any]]:
    """All of `TARGETS` whose subjects ran, for each variant of a peer; ours against ours with the same settings only.

    `to_reach` is None unless `work` is the workload that the targets were set for; they hold where the CPU has what
    `to_reach_with` says.
    """
    rates = {name: figures["tokens_per_second"] for name, figures in measured["subjects"].items()}
    found = []
    for target in TARGETS:
        for numerator in (name for name in rates if parse(name)[0] == target.above):
            for denominator in (name for name in rates if parse(name)[0] == target.below):
                settings = parse(denominator)[1]
                if target.below in OURS and parse(numerator)[1] != settings:
                    continue
                goal = target.to_reach(settings) if work == Workload() else None
                ratio = report.paired_ratio(rates[numerator], rates[denominator])
                pair = {"numerator": numerator, "denominator": denominator, "to_reach": goal}
                pair["to_reach_with"] = None if goal is None else TARGET_CPU
                found.append({**pair, **dataclasses.asdict(ratio)})
    return found


def memory(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Peak memory of each of our mixtures over that of the mixture of a peer that takes least, libraries included.

    Returns `peer` and `ratio` by our subject's name; nothing if no peer ran.
    """
    figures = {name: given["peak_bytes"] for name, given in measured["subjects"].items()}
    mixtures = [name for name in figures if parse(name)[0] not in (*OURS, *DENSE)]
    if not mixtures:
        return {}
    least = min(mixtures, key=figures.__getitem__)
    ours = [name for name in figures if parse(name)[0] in OURS and parse(name)[0] not in DENSE]
    return {name: {"peer": least, "ratio": figures[name] / figures[least]} for name in ours}


def show(measured: dict[str, Any], work: Workload) -> str:
    """The tables that are printed."""
    rows = []
    for name, figures in measured["subjects"].items():
        shares = [
            _number(figures.get(f"share_of_{peak}_peak{way}")) for way in ("", "_causal") for peak in ("mean", "best")
        ]
        rows.append(
            [
                name,
                f"{statistics.median(figures['tokens_per_second']):,.0f}",
                f"{figures['ffn_experts_per_token']:.2f}",
                f"{figures['peak_bytes'] / 2**20:,.0f}",
                f"{figures['peak_bytes_over_start'] / 2**20:,.0f}",
                f"{figures['parameters'] / 1e6:.1f}",
                *shares,
            ]
        )
    parts = [f"training step, {work.label} tokens", "", report.table(HEADER, rows), ""]
    if measured["peak"]:
        mean, best = (measured["peak"][key] / 1e12 for key in ("mean", "best"))
        parts += [
            f"bf16 peak on the step's products: {mean:.3f} TFLOP/s one after the other (mean), {best:.3f} for the best",
            "shares of both: all of the attention counted, then its causal half;"
            f" to reach with {TARGET_CPU}: {PEAK_TARGET:.2f}",
            "",
        ]
    compared = [
        [
            f"{pair['numerator']} / {pair['denominator']}",
            f"{pair['median']:.2f}",
            f"{pair['low']:.2f} .. {pair['high']:.2f}",
            "" if pair["to_reach"] is None else f">= {pair['to_reach']:.2f} with {pair['to_reach_with']}",
        ]
        for pair in ratios(measured, work)
    ]
    parts.append(report.table(["ratio of tokens/s", "median", "quartiles", "to reach"], compared))
    bound = f"; to reach with {TARGET_CPU}: <= {MEMORY_TARGET:.2f}" if work == Workload() else ""
    parts += [
        f"peak memory of {name}: {held['ratio']:.2f} x that of {held['peer']}, the least of the peers' mixtures{bound}"
        for name, held in memory(measured).items()
    ]
    parts += [f"no figures: {reason}" for reason in measured["failures"].values()]
    return "\n".join(parts)


def _number(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"
