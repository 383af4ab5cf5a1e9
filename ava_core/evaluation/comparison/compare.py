"""Evaluations side by side, as plain values: what the table, the page and comparison.json show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ava_core.evaluation.comparison.bootstrap import FIGURES, RESAMPLES, SEED
from ava_core.evaluation.comparison.matching import Matched, match
from ava_core.evaluation.comparison.side import Side
from ava_core.evaluation.losses import FLOAT

SHOWN_DOCUMENTS = 10
"""Documents with the largest differences that are listed."""
DECIDING = "test_bits_per_byte"
"""The figure that `--fail-if-worse` goes by: it compares models whatever their tokenizer."""
PER_TOKEN = ("test_loss", "test_perplexity", "test_accuracy", "test_top5_accuracy")
"""Figures that mean nothing between models with different tokens."""
ROUTING = (
    "expert_load_cv",
    "ffn_load_cv",
    "expert_entropy",
    "router_entropy",
    "experts_per_token",
    "ffn_experts_per_token",
    "dead_experts",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How intervals are made.

    Attributes:
        significance: 1 less their confidence, in (0, 1).
        resamples: how often the text's units are drawn.
        seed: of the draws.
    """

    significance: float = 0.05
    resamples: int = RESAMPLES
    seed: int = SEED


def compare(
    sides: Sequence[Side], settings: Settings, agreement: Sequence[Mapping[str, float] | None] = ()
) -> dict[str, Any]:
    """All that tells the sides from the first, a function of its arguments alone.

    Args:
        sides: two or more, the base first.
        settings: how intervals are made.
        agreement: for each side after the first how often it chooses the base's experts, where that was measured.

    Raises:
        OtherTextError: two sides were evaluated on different texts.
    """
    matched = match([(side.name, side.losses) for side in sides])
    models = [model for model in sides[0].models if all(model in side.models for side in sides)]
    documents = matched.documents
    return {
        "significance": settings.significance,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "text": {
            "documents": len(documents),
            "bytes": int(matched.bytes.sum()),
            "unit": matched.unit,
            "units": matched.units,
        },
        "sides": [{"name": side.name, "evaluation": side.digest, "models": side.models} for side in sides],
        "figures": _figures(sides, matched, models, settings),
        "routing": [_routing(sides, model) for model in models],
        "agreement": list(agreement),
        "settings": _settings(sides),
        "documents": _documents(matched, len(sides)),
        "positions": [_positions(side) for side in sides],
        "frequencies": [side.contents.get("loss_by_frequency", {}).get(FLOAT, []) for side in sides],
        "same_tokens": _same_tokens(matched),
        "samples": _samples(sides),
    }


def worse_sides(comparison: Mapping[str, Any]) -> list[str]:
    """A line for each side that is worse in bits per byte, of the float or of a quantised model, with confidence."""
    lines = []
    for figure in comparison["figures"]:
        for side, found in zip(comparison["sides"][1:], figure["differences"], strict=True):
            if figure["figure"] == DECIDING and found["verdict"] == "worse":
                lines.append(
                    f"{side['name']}: is worse than {comparison['sides'][0]['name']}: {figure['model']} {DECIDING}"
                    f" {found['value']:+.4f}, {100 * (1 - comparison['significance']):.4g}% interval"
                    f" [{found['low']:+.4f}, {found['high']:+.4f}]"
                )
    return lines


def _same_tokens(matched: Matched) -> bool:
    return all(np.array_equal(side["tokens"], matched.sides[0]["tokens"]) for side in matched.sides)


def _figures(
    sides: Sequence[Side], matched: Matched, models: Sequence[str], settings: Settings
) -> list[dict[str, Any]]:
    """The figures that have a value on every document, those of the float model first."""
    names = [name for name in FIGURES if name not in PER_TOKEN or _same_tokens(matched)]
    rows = []
    for model in models:
        pairs = [(side, model, name) for name in names for side in range(1, len(sides))]
        found = iter(matched.differences(pairs, model, **asdict(settings)))
        for name in names:
            better = FIGURES[name].lower_is_better
            differences = [next(found) for _ in sides[1:]]
            rows.append(
                {
                    "figure": name,
                    "model": model,
                    "lower_is_better": better,
                    "values": [matched.value(side, model, name) for side in range(len(sides))],
                    "differences": [{**asdict(item), "verdict": item.verdict(better)} for item in differences],
                }
            )
    return rows


def _routing(sides: Sequence[Side], model: str) -> dict[str, Any]:
    """Figures of the routers, and by layer how far the loads are from the base's where the experts are as many.

    The distance is the total variation between the shares of the experts: 0 for equal loads, 1 for none in common.
    """
    figures = [side.contents["figures"][model] for side in sides]
    shares = [_shares(side.contents, model) for side in sides]
    kinds = [side.contents.get("expert_kinds") for side in sides]
    distances = [
        (np.abs(mine - shares[0]).sum(axis=1) / 2).tolist()
        if mine.shape == shares[0].shape and kind == kinds[0]
        else None
        for mine, kind in zip(shares[1:], kinds[1:], strict=True)
    ]
    return {
        "model": model,
        "figures": {name: [values.get(name) for values in figures] for name in ROUTING},
        "load_distance": distances,
    }


def _shares(contents: Mapping[str, Any], model: str) -> np.ndarray:
    """Share of each expert in the choices of its layer, shape (L, E)."""
    layers = contents["layers"] if model == FLOAT else contents["quantized_layers"][model]
    load_LE = np.asarray([layer["load"] for layer in layers], np.float64)
    return load_LE / load_LE.sum(axis=1, keepdims=True)


def _settings(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """The settings that aren't the same for all; the pipeline's configuration where it is known of all."""
    known = all(side.parameters for side in sides)
    flat = [dict(side.parameters) if known else _flat(side.contents.get("settings", {})) for side in sides]
    keys = sorted(set().union(*flat))
    rows = [{"setting": key, "values": [values.get(key) for values in flat]} for key in keys]
    return [row for row in rows if len(set(row["values"])) > 1]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def _documents(matched: Matched, sides: int) -> list[dict[str, Any]]:
    """The documents on which a float model differs most from the base's, by bits that it costs more or less."""
    values = np.stack([matched.by_document(side, FLOAT, DECIDING) for side in range(sides)])
    sizes = np.bincount(matched.of_unit, matched.bytes)
    bits = np.nan_to_num(np.abs(values[1:] - values[0]).max(axis=0) * sizes)
    order = np.argsort(-bits, kind="stable")[:SHOWN_DOCUMENTS]
    return [
        {
            "name": matched.documents[index].name,
            "sha256": matched.documents[index].sha256,
            "bytes": int(sizes[index]),
            DECIDING: values[:, index].tolist(),
        }
        for index in order.tolist()
        if sizes[index]
    ]


def _positions(side: Side) -> list[float | None]:
    return list(side.contents.get("loss_by_position", []))


def _samples(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Continuations of the prompts that all sides were given, by the same model and strategy."""
    texts = [
        {(item["model"], item["strategy"], item["prompt"]): item["text"] for item in side.contents.get("samples", [])}
        for side in sides
    ]
    return [
        {
            "model": model,
            "strategy": strategy,
            "prompt": prompt,
            "continuations": [found[model, strategy, prompt][len(prompt) :] for found in texts],
        }
        for model, strategy, prompt in texts[0]
        if all((model, strategy, prompt) in found for found in texts)
    ]
