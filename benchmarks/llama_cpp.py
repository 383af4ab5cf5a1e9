"""Our decoder beside llama.cpp's: the same model, the same threads, in turns.

Usage: python -m benchmarks.llama_cpp --llama-cpp SOURCE --python PYTHON [--architecture olmoe] [--rounds 5]

SOURCE is llama.cpp's, for its converter (see docs/export.md); PYTHON an interpreter with llama-cpp-python, compiled for
this machine: `pip install llama-cpp-python==0.3.36` in an environment of its own takes ten minutes on two cores.

The model has cpu/small's shapes with random weights, but for what the architecture can't have: no zero-computation
experts and gating residuals; OLMoE in llama.cpp has as many key and value heads as heads. First the float32 file must
give PyTorch's logits; then greedy tokens per second of one sequence and prompt tokens per second are measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import ava_core.models  # noqa: F401  registers the architecture
from ava_core.config.hardware import usable_cores
from ava_core.exporting.gguf import export_gguf
from benchmarks import hardware, report
from benchmarks.inference import NEW, PROMPT, finish, make_models
from benchmarks.turns import Workers

PREFILL = 512
KINDS = ("q8_0", "q4_0")
AGAINST = {"int8": "q8_0", "int4": "q4_0"}
LOGIT_TOLERANCE = 0.01
"""In float32 llama.cpp keeps its cache in float16; logits of random weights are of the order 1."""
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "olmoe": {
        "qk_norm": "projection",
        "num_key_value_heads": 6,
        "rms_norm_eps": 1e-5,
        "normalize_router_weights": False,
    },
    "qwen3_moe": {"qk_norm": "head", "normalize_router_weights": True},
}
NOT_IN_LLAMA_CPP = {
    "num_zero_experts": 0,
    "num_copy_experts": 0,
    "num_constant_experts": 0,
    "gating_residuals": False,
    "router": "top_k",
}


def measure(
    made: dict[str, Path], gguf: Path, python: str, threads: int, rounds: int
) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Rates by measurement and subject, one per round; and the largest difference of a logit in float32."""
    context = max(PROMPT + NEW, PREFILL)
    llama = {"threads": threads, "context": context}
    ours = "benchmarks.inference_subjects:Onnx"
    subjects: list[tuple[str, str, dict[str, Any]]] = [
        (scheme, ours, {"folder": str(made[scheme]), "threads": threads}) for scheme in AGAINST
    ]
    theirs = "benchmarks.llama_cpp_subject:LlamaCpp"
    with Workers([("f32", theirs, {"file": str(gguf), **llama})], {"f32": python}) as workers:
        difference = _difference(made["torch"], workers.alive["f32"].ask)
        for kind in KINDS:
            quantised = gguf.with_name(f"{kind}.gguf")
            workers.alive["f32"].ask("quantize", file=str(gguf), output=str(quantised), kind=kind)
            subjects.append((kind, theirs, {"file": str(quantised), **llama}))
    rates: dict[str, dict[str, list[float]]] = {"decode": {}, "prefill": {}}
    with Workers(subjects, dict.fromkeys(KINDS, python)) as workers:
        for turn in range(rounds + 1):
            decoded = workers.ask_each("decode", prompt_tokens=PROMPT, new_tokens=NEW)
            prefilled = workers.ask_each("prefill", prompt_tokens=PREFILL)
            if turn:  # the first round warms up
                for call, answers in (("decode", decoded), ("prefill", prefilled)):
                    for subject, answer in answers.items():
                        rates[call].setdefault(subject, []).append(answer["rate"])
        if workers.failures:
            raise SystemExit("; ".join(workers.failures.values()))
    return rates, difference


@torch.inference_mode()
def _difference(folder: Path, ask: Any) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = np.random.default_rng(1).integers(2, model.config.vocab_size, 64).tolist()
    expected = model(torch.tensor([tokens])).logits[0, -1]
    return float((expected - torch.tensor(ask("logits", tokens=tokens)["logits"])).abs().max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.llama_cpp", description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--llama-cpp", type=Path, required=True, help="folder of llama.cpp's source, for its converter")
    flags.add_argument("--python", required=True, help="interpreter of an environment with llama-cpp-python")
    flags.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="olmoe")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    known = flags.parse_args(arguments)
    threads = usable_cores()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with tempfile.TemporaryDirectory(prefix="ava-bench-") as name:
        folder = Path(name)
        made = make_models(folder, **NOT_IN_LLAMA_CPP, **ARCHITECTURES[known.architecture])
        finish(made["torch"])
        export_gguf(made["torch"], folder / "f32.gguf", known.llama_cpp, "f32")
        rates, difference = measure(made, folder / "f32.gguf", known.python, threads, known.rounds)
        sizes = {kind: (folder / f"{kind}.gguf").stat().st_size for kind in KINDS}
        sizes |= {scheme: sum(path.stat().st_size for path in made[scheme].glob("model.onnx*")) for scheme in AGAINST}
    names = [*AGAINST, *KINDS]
    rows = [[call, *(f"{median(by[name]):,.0f}" for name in names)] for call, by in rates.items()]
    rows.append(["size, MB", *(f"{sizes[name] / 1e6:.1f}" for name in names)])
    print(f"{known.architecture}: float32 logits differ by at most {difference:.1e}\n")
    print(report.table(("tokens/s", *names), rows))
    ratios = [
        [f"{call}: {ours} / {theirs}", f"{report.paired_ratio(by[ours], by[theirs]).median:.2f}"]
        for call, by in rates.items()
        for ours, theirs in AGAINST.items()
    ]
    print("\n" + report.table(("ratio", "median"), ratios))
    described = hardware.describe("cpu", threads)
    kept = {"rates": rates, "logit_difference": difference, "bytes": sizes}
    report.keep(hardware.slug(described), f"llama-cpp-{known.architecture}", described, kept, known.results)
    if difference > LOGIT_TOLERANCE:
        print(f"logits differ by {difference:.1e}, more than {LOGIT_TOLERANCE:g}: not the same model", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
