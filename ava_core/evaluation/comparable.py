"""What evaluation.json keeps for `ava compare` alone: settings, and losses by position and by frequency of all models.

The float model's own losses by position stand in `loss_by_position`, where they always were.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ava_core.config.evaluate import EvaluateConfig
from ava_core.evaluation import frequency
from ava_core.evaluation.losses import FLOAT
from ava_core.evaluation.scoring import Score
from ava_core.files import parse_json
from ava_core.runtime import manifest
from ava_core.runtime.reading import read_object

UNCOMPARED = ("architectures", "transformers_version", "auto_map", "_name_or_path")
"""Of config.json: what says nothing of the model."""


def contents(
    scores: Mapping[str, Score], model: Path, training: Mapping[str, Any], config: EvaluateConfig, seed: int
) -> dict[str, Any]:
    """The entries of evaluation.json.

    Args:
        scores: by model, the float one first.
        model: output of `ava train`.
        training: its training.json.
        config: the section `evaluate`.
        seed: of nucleus sampling.
    """
    return {
        "settings": _settings(model, training, config, seed),
        "quantized_loss_by_position": {
            name: [
                nats / tokens if tokens else None
                for nats, tokens in zip(score.position_nats, score.position_tokens, strict=True)
            ]
            for name, score in scores.items()
            if name != FLOAT
        },
        "loss_by_frequency": {
            name: frequency.describe(score.frequency_nats, score.frequency_tokens) for name, score in scores.items()
        },
    }


def _settings(model: Path, training: Mapping[str, Any], config: EvaluateConfig, seed: int) -> dict[str, Any]:
    """How the model was made and measured, as far as its folder tells: a model's folder holds no params.yaml."""
    made = manifest.read(model)
    architecture = {key: value for key, value in read_object(model / "config.json").items() if key not in UNCOMPARED}
    return {
        "model": architecture,
        "train": {**training, **_metrics(model), "threads": made.threads, "ranks": made.ranks},
        "evaluate": {**config.model_dump(mode="json"), "seed": seed},
    }


def _metrics(model: Path) -> dict[str, Any]:
    """Of the training: how long, and how fast it learnt at most."""
    metrics = read_object(model / "metrics.json") if (model / "metrics.json").is_file() else {}
    wanted = ("steps", "tokens_seen", "validation_bits_per_byte")
    found: dict[str, Any] = {name: metrics[name] for name in wanted if name in metrics}
    history = model / "history.jsonl"
    if history.is_file():
        rates = [parse_json(line).get("learning_rate") for line in history.read_text().splitlines() if line.strip()]
        found["peak_learning_rate"] = max((rate for rate in rates if rate is not None), default=None)
    return found
