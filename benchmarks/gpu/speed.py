"""A training step of ours and of HF's OLMoE with grouped_mm, in the same run: time, memory, share of the peak."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import torch

from benchmarks.comparison import add_shares, ratios
from benchmarks.gpu.plan import Outcome, Plan
from benchmarks.model import measure
from benchmarks.workload import Workload, from_preset

SUBJECTS = ("ours_vanilla", "ours_moepp", "hf_olmoe_bf16")
COMPILED = "+layers_compiled"
ROUNDS, WARMUP, STEPS = 3, 1, 3
TINY_BATCH = 2
LARGE = {True: "cpu/small", False: "gpu/large"}
LEAST_GIB = {"gpu/base": (22, 40), "gpu/large": (75, 110)}
"""Memory that a preset is made for, on less of which it is left out; and what all subjects take: on less ours_vanilla
stays away, for every subject holds its weights and optimiser all the time."""


def base(plan: Plan) -> Outcome:
    """gpu/base, as it is."""
    return compare(plan, plan.preset, compiled=False)


def base_compiled(plan: Plan) -> Outcome:
    """gpu/base, its layers compiled."""
    return compare(plan, plan.preset, compiled=True)


def large(plan: Plan) -> Outcome:
    """gpu/large, as it is."""
    return compare(plan, LARGE[plan.tiny], compiled=False)


def large_compiled(plan: Plan) -> Outcome:
    """gpu/large, its layers compiled."""
    return compare(plan, LARGE[plan.tiny], compiled=True)


def compare(plan: Plan, preset: str, *, compiled: bool) -> Outcome:
    """Step time, memory and utilisation of every subject at a preset's shapes; faults: a subject has no figures."""
    if compiled and plan.device == "cpu":
        return Outcome(skipped="layers are compiled on GPUs only: train.compile is refused on CPUs")
    names, work = list(SUBJECTS), _workload(plan, preset)
    if plan.device == "cuda":
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        least, for_all = LEAST_GIB.get(preset, (0, 0))
        if gib < least:
            return Outcome(skipped=f"{preset} is made for {least} GiB, this GPU has {gib:.0f}")
        names = names if gib >= for_all else names[1:]
    names = [f"{name}{COMPILED}" for name in names] if compiled else names
    rounds, warmup, steps = (2, 1, 1) if plan.tiny else (ROUNDS, WARMUP, STEPS)
    measured = measure(names, work, plan.threads, rounds, warmup, steps)
    add_shares(measured, work)
    figures: dict[str, Any] = {"workload": dataclasses.asdict(work), "peak": measured["peak"], "subjects": {}}
    for name, given in measured["subjects"].items():
        milliseconds = [1e3 * work.tokens / rate for rate in given["tokens_per_second"]]
        figures["subjects"][name] = {"step_milliseconds": statistics.median(milliseconds), **given}
    peer = names[-1]
    figures["over_peer"] = _over(measured["subjects"], peer)
    figures["ratios"] = ratios(measured, work)
    return Outcome(figures=figures, faults=list(measured["failures"].values()))


def _over(subjects: dict[str, Any], peer: str) -> dict[str, dict[str, float]]:
    """Each of ours over the peer: tokens per second, the median over rounds of the quotient, and peak memory."""
    if peer not in subjects:
        return {}
    below = subjects[peer]
    found = {}
    for name, above in subjects.items():
        if name != peer:
            pairs = zip(above["tokens_per_second"], below["tokens_per_second"], strict=True)
            found[name] = {
                "tokens_per_second": statistics.median(a / b for a, b in pairs),
                "peak_bytes": above["peak_bytes"] / below["peak_bytes"],
            }
    return found


def _workload(plan: Plan, preset: str) -> Workload:
    work = from_preset(preset, plan.device)
    if not plan.tiny:
        return work
    return dataclasses.replace(work, batch=TINY_BATCH, label=f"{preset}, {TINY_BATCH} x {work.length}")
