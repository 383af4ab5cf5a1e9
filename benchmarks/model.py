"""Training steps of our model against the peers', in processes that take turns.

Usage: make bench-model, or python -m benchmarks.model [--all-peers] [--scaling] [--preset cpu/tiny] [--device cuda]

Prints tokens per second, ratios to the peers, memory, and the share of the machine's bf16 peak, and keeps them in
benchmarks/results/. A step is forward, backward and optimiser. Ratios are medians over rounds of the quotient within
a round. Peers run as their users run them and, with `+kept`, with our process settings too.

All subjects are in memory at once: on a CPU some 16 GB for the usual ones. Where that is too much (gpu/large on 80 GB
holds two or three), name fewer with --subjects.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ava_core.config import presets
from benchmarks import hardware, report
from benchmarks.comparison import add_shares, ffn_experts, memory, ratios, show
from benchmarks.subjects import OURS, parse
from benchmarks.turns import Workers, take_turns
from benchmarks.workload import Workload, from_preset

PEAK = "peak"
BASE_PEERS = ("hf_olmoe_autocast", "hf_olmoe_bf16", "hf_llama_bf16")
MORE_PEERS = ("hf_mixtral_bf16", "hf_qwen3_moe_bf16")
BATCHED_LIMIT = 4 * 2**30
"""Bytes of expert weights that batched_mm may copy; it gathers the weights of every slot of every token."""


def subjects(work: Workload, allocator: str, all_peers: bool) -> list[str]:
    """Names of what is run: peers, each with the asked-for allocator settings, and ours."""
    peers = [*BASE_PEERS, *(MORE_PEERS if all_peers else ())]
    if all_peers:
        peers.append("hf_olmoe_bf16+eager")
        peers.append("hf_olmoe_bf16+eager_attention")
        if batched_bytes(work) <= BATCHED_LIMIT:
            peers.append("hf_olmoe_bf16+batched_mm")
    ours = list(OURS)
    if work.device == "cuda":  # the allocator is CUDA's own there; what helps is compilation
        ours = [f"{name}+compiled" for name in ours]
        return [*peers, *(f"{name}+compiled" for name in BASE_PEERS), *ours]
    found = []
    for name in peers:
        found += [name] if allocator != "kept" else []
        found += [f"{name}+kept"] if allocator != "default" else []
    return found + ours


def batched_bytes(work: Workload) -> int:
    """What batched_mm's copies of bf16 expert weights take in a step, forward and backward, of all layers."""
    return work.layers * work.tokens * work.experts_per_token * 3 * work.hidden_size * work.expert_size * 2


def measure(names: Sequence[str], work: Workload, threads: int, rounds: int, warmup: int, steps: int) -> dict[str, Any]:
    """Run the subjects and the peak in turn.

    Returns:
        subjects: by name, tokens_per_second (one per round), ffn_experts_per_token, loss, memory and parameters;
        peak: mean and best rate of products in FLOP/s; failures: why a subject has no figures.
    """
    arguments = {"workload": dataclasses.asdict(work), "threads": threads}
    started = [(name, "benchmarks.subjects:TrainingStep", {"name": name, **arguments}) for name in names]
    with Workers([*started, (PEAK, "benchmarks.peak:Peak", arguments)]) as workers:
        turns = take_turns(workers, rounds, warmup, steps, lambda done: _progress(done, warmup + rounds))
        peak = turns.pop(PEAK, None)
        workers.alive.pop(PEAK, None)
        endings = workers.ask_each("finish")
        failures = dict(workers.failures)
    found = {}
    for name in (name for name in names if name in turns and name in endings):
        experts = [turn["ffn_experts_per_token"] for turn in turns[name]]
        found[name] = {
            "tokens_per_second": [turn["tokens_per_second"] for turn in turns[name]],
            "ffn_experts_per_token": ffn_experts(name, experts, work),
            "loss": turns[name][-1]["loss"],
            **endings[name],
        }
    return {"subjects": found, "peak": peak[-1] if peak else None, "failures": failures}


def _progress(done: int, rounds: int) -> None:
    end = "\n" if done == rounds else "\r"
    print(f"round {done} of {rounds}", end=end, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__.split("\n")[0])
    flags.add_argument("--rounds", type=int, default=7, help="measured rounds (default: %(default)s)")
    flags.add_argument("--warmup", type=int, default=2, help="rounds before them, not measured (default: %(default)s)")
    flags.add_argument("--steps", type=int, default=3, help="training steps per turn (default: %(default)s)")
    flags.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of each process")
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    flags.add_argument("--preset", choices=presets.names(), help="shapes of a preset instead of the usual ones")
    flags.add_argument("--batch", type=int, help="sequences of a step, instead of the workload's")
    flags.add_argument("--length", type=int, help="tokens of a sequence, instead of the workload's")
    flags.add_argument(
        "--allocator",
        choices=("both", "default", "kept"),
        help="memory allocator's settings of the peers' processes, on a CPU (default: both; default with --all-peers)",
    )
    flags.add_argument("--all-peers", action="store_true", help="more peers, and other settings of HF OLMoE")
    flags.add_argument(
        "--subjects", help="subjects to run, with commas between; see benchmarks/subjects.py (default: all)"
    )
    flags.add_argument("--scaling", action="store_true", help="time one layer against tokens and experts instead")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep. Returns 1 if a subject has no figures."""
    command_line = parser()
    flags = command_line.parse_args(arguments)
    for name in ("rounds", "steps", "threads"):
        if getattr(flags, name) < 1:
            command_line.error(f"--{name} = {getattr(flags, name)}: must be > 0")
    work = from_preset(flags.preset, flags.device) if flags.preset else Workload(device=flags.device)
    if flags.batch or flags.length:
        batch, length = flags.batch or work.batch, flags.length or work.length
        label = f"{flags.preset + ', ' if flags.preset else ''}{batch} x {length}"
        work = dataclasses.replace(work, batch=batch, length=length, label=label)
    described = hardware.describe(flags.device, flags.threads)
    print(hardware.line(described))
    if flags.scaling:
        from benchmarks import scaling

        return scaling.run(work, described, flags.rounds, flags.warmup, flags.results)
    try:
        allocator = flags.allocator or ("default" if flags.all_peers else "both")
        names = flags.subjects.split(",") if flags.subjects else subjects(work, allocator, flags.all_peers)
        for name in names:
            parse(name)
    except ValueError as error:
        command_line.error(str(error))
    if flags.all_peers and batched_bytes(work) > BATCHED_LIMIT:
        gib = batched_bytes(work) / 2**30
        print(f"left out: hf_olmoe_bf16+batched_mm, which would copy {gib:.0f} GiB of expert weights in a step")
    measured = measure(names, work, flags.threads, flags.rounds, flags.warmup, flags.steps)
    add_shares(measured, work)
    print(show(measured, work))
    compared = {"ratios": ratios(measured, work), "memory": memory(measured)}
    values = {**measured, **compared, "workload": dataclasses.asdict(work), "steps": flags.steps}
    path = report.keep(hardware.slug(described), f"training step, {work.label}", described, values, flags.results)
    print(report.kept_in(path))
    return 1 if measured["failures"] else 0


def _end(*_: object) -> None:
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)  # so that the workers are ended before this process
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
