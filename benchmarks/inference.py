"""Quantised models beside their float model: size, quality, speed, and the server's start.

Usage: python -m benchmarks.inference [--model outputs/model --shards outputs/shards] [--rounds 5]

Size and quality are those of a trained model, by `ava quantize`: run `make repro` or name another with --model and
--shards. Speed is that of cpu/small's shapes with random weights, on which it doesn't depend: greedy tokens per second
of one sequence, prompt tokens per second, and 16 requests at once through the serving engine, by PyTorch in bfloat16
and by ONNX Runtime with 8 and 4 bits, in turns. Targets are the constants below; a missed one is printed as
such and ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch

from ava_core.config.hardware import usable_cores
from ava_core.config.layers import resolve
from ava_core.config.quantize import QuantizeConfig
from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.tokenizer import save_tokenizer, train_tokenizer
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.onnx.export import export_onnx
from ava_core.quantization.plan import formats, groups_of
from ava_core.quantization.rounding import round_model, unmeasured
from ava_core.runtime import manifest
from benchmarks import hardware, report
from benchmarks.served import NAME, serving
from benchmarks.turns import Workers

PRESET = Path("configs/cpu/small.yaml")
PROMPT, NEW = 16, 480
"""Tokens of the decoding runs, in a context of 512."""
LETTERS = ("".join(map(chr, range(32, 127))),) * 100
STREAMS, STREAM_NEW = 16, 128
QUALITY = {
    "int8": {"size": 0.28, "increase_percent": 0.1, "expert_agreement": 0.995},
    "int4": {"size": 0.18, "increase_percent": 1.0, "expert_agreement": 0.96},
}
DECODE_RATIO, PREFILL_RATIO, STREAMS_RATIO, START_SECONDS = 5.0, 1.0, 4.0, 5.0


def make_models(folder: Path, **changes: Any) -> dict[str, Path]:
    """cpu/small with random weights: the PyTorch model, and its exports in the cheapest formats of each scheme.

    Args:
        folder: gets a folder for each.
        changes: fields of the model's configuration.
    """
    config = resolve(config_files=[PRESET]).config
    torch.manual_seed(0)
    fields = {**config.model.model_dump(), "vocab_size": config.tokenizer.vocab_size, **changes}
    model = EnhancedMoEForCausalLM(EnhancedMoEConfig(**fields)).eval()
    made = {"torch": folder / "torch"}
    model.save_pretrained(made["torch"])
    settings = QuantizeConfig()
    for scheme in QUALITY:
        made[scheme] = folder / scheme
        made[scheme].mkdir()
        options = {group: formats(group, scheme, None) for group in groups_of(model)}
        # Eight bits for everything, or four for the experts: what the mixed precision starts from.
        wanted = {group.name: unmeasured(scheme, given) for group, given in options.items()}
        export_onnx(model, made[scheme], rounded=round_model(model, wanted, settings), accuracy_level=4)
        model.config.save_pretrained(made[scheme])
        finish(made[scheme])
    return made


def quality(model: Path, shards: Path, work: Path) -> dict[str, dict[str, float]]:
    """Figures of `ava quantize` by scheme."""
    found = {}
    for scheme in QUALITY:
        output = work / scheme
        command = [sys.executable, "-m", "ava_core.cli.main", "quantize", "--config", "configs/cpu/tiny.yaml"]
        command += ["--model", str(model), "--shards", str(shards), "--scheme", scheme, "--output", str(output)]
        subprocess.run([*command, "--work", str(work / "work"), "--quiet"], check=True)
        metrics = json.loads((output / "metrics.json").read_text())
        files = sum((output / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
        found[scheme] = {
            "size": files / (model / "model.safetensors").stat().st_size,
            "increase_percent": metrics["parity_increase_percent"],
            "expert_agreement": metrics["parity_expert_agreement"],
        }
    return found


def start_seconds(folder: Path) -> float:
    """From the start of `ava serve` to the first token that it sends."""
    body = {"model": NAME, "prompt": "To be", "max_tokens": 1}
    started = time.perf_counter()
    with serving(folder) as (address, _):
        httpx.post(f"{address}/v1/completions", json=body, timeout=60).raise_for_status()
        return time.perf_counter() - started


def measure_speed(made: dict[str, Path], rounds: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """Rates by measurement and subject, one per round."""
    factories = {"torch": "Torch", "int8": "Onnx", "int4": "Onnx"}
    subjects = [
        (name, f"benchmarks.inference_subjects:{factory}", {"folder": str(made[name]), "threads": threads})
        for name, factory in factories.items()
    ]
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("decode", "decode", {"prompt_tokens": PROMPT, "new_tokens": NEW}),
        ("prefill", "prefill", {"prompt_tokens": 512}),
        ("1 stream", "serve", {"streams": 1, "prompt_tokens": PROMPT, "new_tokens": STREAM_NEW}),
        ("16 streams", "serve", {"streams": STREAMS, "prompt_tokens": PROMPT, "new_tokens": STREAM_NEW}),
    ]
    rates: dict[str, dict[str, list[float]]] = {name: {} for name, _, _ in calls}
    with Workers(subjects) as workers:
        for turn in range(rounds + 1):
            for name, call, arguments in calls:
                for subject, worker in workers.alive.items():
                    if call == "serve" and subject == "torch":
                        continue
                    rate = worker.ask(call, **arguments)["rate"]
                    if turn:  # the first round warms up
                        rates[name].setdefault(subject, []).append(rate)
    return rates


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__.split("\n")[0])
    flags.add_argument(
        "--model", type=Path, default=Path("outputs/model"), help="output of `ava train`, for size and quality"
    )
    flags.add_argument("--shards", type=Path, default=Path("outputs/shards"), help="output of `ava preprocess`")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    known = flags.parse_args(arguments)
    threads = usable_cores()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    rows: list[tuple[str, str, str, bool]] = []
    with tempfile.TemporaryDirectory(prefix="ava-bench-") as name:
        folder = Path(name)
        measured: dict[str, Any] = {}
        if (known.model / "model.safetensors").is_file():
            measured["quality"] = quality(known.model, known.shards, folder / "quality")
            for scheme, figures in measured["quality"].items():
                for figure, bound in QUALITY[scheme].items():
                    good = figures[figure] >= bound if figure == "expert_agreement" else figures[figure] <= bound
                    rows.append((f"{scheme} {figure}", f"{figures[figure]:.4f}", f"{bound:g}", good))
        else:
            print(f"{known.model}: no model.safetensors: size and quality are left out; run `make repro` for them")
        made = make_models(folder)
        measured["speed"] = rates = measure_speed(made, known.rounds, threads)
        for scheme in QUALITY:
            decode = report.paired_ratio(rates["decode"][scheme], rates["decode"]["torch"]).median
            prefill = report.paired_ratio(rates["prefill"][scheme], rates["prefill"]["torch"]).median
            streams = report.paired_ratio(rates["16 streams"][scheme], rates["1 stream"][scheme]).median
            for figure, ratio, bound in (
                ("decode / PyTorch bf16", decode, DECODE_RATIO),
                ("prefill / PyTorch bf16", prefill, PREFILL_RATIO),
                ("16 streams / 1", streams, STREAMS_RATIO),
            ):
                rows.append((f"{scheme} {figure}", f"{ratio:.2f}", f"{bound:g}", ratio >= bound))
        starts = [start_seconds(made["int4"]) for _ in range(3)]
        measured["start_seconds"] = starts
        start = median(starts)
        rows.append(("start to first token, s", f"{start:.1f}", f"{START_SECONDS:g}", start <= START_SECONDS))
    names = sorted({subject for by_subject in rates.values() for subject in by_subject})
    print(report.table(("tokens/s", *names), [
        [call, *(f"{median(by_subject[name]):,.0f}" if name in by_subject else "" for name in names)]
        for call, by_subject in rates.items()
    ]))  # fmt: skip
    print()
    print(
        report.table(("figure", "measured", "to reach", ""), [[*row[:3], "" if row[3] else "missed"] for row in rows])
    )
    described = hardware.describe("cpu", threads)
    report.keep(hardware.slug(described), "inference", described, measured, known.results)
    return 0 if all(row[3] for row in rows) else 1


def finish(folder: Path, texts: Sequence[str] = LETTERS, vocab_size: int = 300) -> None:
    """Add what `ava serve` wants beside the graph: a tokenizer, any one where no text is read, and a manifest."""
    save_tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=vocab_size)), folder)
    (folder / "metrics.json").write_text("{}")
    blank = {"key": "0" * 32, "version": "0", "code": "0", "config": "0"}
    files = manifest.describe_files(folder)
    written = manifest.Manifest(step="quantize", **blank, choices={}, inputs={}, threads=1, ranks=1, files=files)
    manifest.write(folder, written)


if __name__ == "__main__":
    sys.exit(main())
