"""Folders as `ava evaluate` leaves them, with losses that a test wants: no model is trained for it."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ava_core.evaluation.losses import NAME, Document
from ava_core.runtime import manifest

COUNT = 60
"""Documents, unless a test asks for others."""


def losses_text(effect: float = 0.0, count: int = COUNT, schemes=(), text: str = "text") -> str:
    """losses.jsonl of a model that costs `effect` nats per byte more than the one with effect 0.

    Over all documents exactly so much; on one of them up to 0.004 more or less.
    """
    draw = np.random.default_rng(7)
    size, ease = draw.integers(2_000, 6_000, count), draw.normal(1.3, 0.2, count)
    sign = np.where(np.arange(count) % 2, 1.0, -1.0)
    own = effect + 0.004 * (sign - (sign * size).sum() / size.sum()) if effect else np.zeros(count)
    lines = []
    for index, (here, nats) in enumerate(zip(size.tolist(), (size * (ease + own)).tolist(), strict=True)):
        document = Document(name=f"{text}-{index}", sha256=f"{text}{index}", bytes=[here], tokens=[here // 3])
        sums = {"nats": [nats], "correct": [here // 9], "top5": [here // 5]}
        models = {"float": sums, **{scheme: {**sums, "nats": [nats * 1.001]} for scheme in schemes}}
        lines.append(json.dumps({**asdict(document), "models": models}) + "\n")
    return "".join(lines)


def figures_of(text: str, schemes=()) -> dict[str, dict[str, float]]:
    """The figures of the float and the quantised models that losses.jsonl stands for."""
    rows = [json.loads(line) for line in text.splitlines()]
    size, tokens = (sum(sum(row[key]) for row in rows) for key in ("bytes", "tokens"))
    found = {}
    for model in ("float", *schemes):
        nats, correct, top5 = (
            math.fsum(sum(row["models"][model][key]) for row in rows) for key in ("nats", "correct", "top5")
        )
        found[model] = {
            "test_bits_per_byte": nats / math.log(2) / size,
            "test_loss": nats / tokens,
            "test_perplexity": math.exp(nats / tokens),
            "test_accuracy": correct / tokens,
            "test_top5_accuracy": top5 / tokens,
            "expert_entropy": 0.9,
            "dead_experts": 0,
        }
    return found


def write_comparable(folder: Path, effect: float = 0.0, schemes=(), rate: float = 0.01, **options) -> Path:
    """An evaluation folder with a manifest; `options` as in `losses_text`."""
    folder.mkdir(parents=True)
    text = losses_text(effect, schemes=schemes, **options)
    (folder / NAME).write_text(text)
    figures = figures_of(text, schemes)
    layers = [{"layer": 0, "load": [0.9 + effect, 0.6, 0.5 - effect]}]
    contents = {
        "figures": figures,
        "expert_kinds": ["ffn", "ffn", "zero"],
        "layers": layers,
        "quantized_layers": dict.fromkeys(schemes, layers),
        "loss_by_position": [5.0, 4.0, 3.5, 3.4 + effect],
        "loss_by_frequency": {"float": [{"occurrences": 1, "tokens": 5, "loss": 7.0 + effect}]},
        "settings": {"train": {"peak_learning_rate": rate, "steps": 30}, "evaluate": {"seed": 5}},
        "samples": [
            {"model": "float", "strategy": "greedy", "prompt": "To be", "text": f"To be <b>or</b> {effect:g}"},
            {"model": "float", "strategy": "greedy", "prompt": f"only {effect:g}", "text": f"only {effect:g}"},
        ],
    }
    (folder / "evaluation.json").write_text(json.dumps(contents))
    prefixes = {"float": "", **{scheme: f"{scheme}_" for scheme in schemes}}
    flat = {f"{prefixes[model]}{name}": value for model, each in figures.items() for name, value in each.items()}
    (folder / "metrics.json").write_text(json.dumps(flat))
    (folder / "report.html").write_text("<!doctype html><title>report</title><p>a report</p>")
    return sealed(folder)


def sealed(folder: Path, inputs: dict[str, str] | None = None) -> Path:
    """Give an evaluation folder its manifest, anew if it had one."""
    (folder / manifest.NAME).unlink(missing_ok=True)
    identity = {"step": "evaluate", "key": "k", "version": "0", "code": "", "config": "", "choices": {}}
    contents = manifest.Manifest(
        **identity, inputs=inputs or {}, threads=1, ranks=1, files=manifest.describe_files(folder)
    )
    manifest.write(folder, contents)
    return folder
