"""report.html: the evaluation as one page that needs no network and no other file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ava_core.config.evaluate import EvaluateConfig
from ava_core.evaluation import charts
from ava_core.evaluation.losses import FLOAT
from ava_core.evaluation.report.aligned import (
    Aligned,
    aligned_answers,
    aligned_cards,
    aligned_rows,
    has_loss_of_text,
)
from ava_core.evaluation.report.context import context_rows
from ava_core.evaluation.report.tasks import task_rows
from ava_core.evaluation.samples import STRATEGIES
from ava_core.models.routing.statistics import DEAD_SHARE
from ava_core.pages import page_environment


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the page is made from.

    Attributes:
        contents: evaluation.json.
        training: training.json of the model.
        origin: where the model comes from, in words; empty for one that was trained here from the beginning.
        history: lines of the model's history.jsonl; may be empty.
        aligned: its answers beside those of the model that it began from; None: there is no such comparison.
        sizes: `Candidate.sizes` by the model's name.
        settings: prompts and decoding.
        seed: of nucleus sampling.
    """

    contents: dict[str, Any]
    training: dict[str, Any]
    origin: str
    history: list[dict[str, float]]
    aligned: Aligned | None
    sizes: dict[str, dict[str, float]]
    settings: EvaluateConfig
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the comparison.

    Attributes:
        label: what the figure is, in words.
        name: its name in metrics.json.
        form: format specification of the value, or `bytes`.
        lower_is_better: which direction is good; None: neither.
        from_step: the figure is a metric of the step that made the model (`Report.sizes`), not of the evaluation.
    """

    label: str
    name: str
    form: str
    lower_is_better: bool | None = None
    from_step: bool = False


ROWS = (
    Row("bits per byte", "test_bits_per_byte", ".4f", True),
    Row("loss, nats per token", "test_loss", ".4f", True),
    Row("perplexity", "test_perplexity", ".3f", True),
    Row("accuracy", "test_accuracy", ".2%", False),
    Row("top-5 accuracy", "test_top5_accuracy", ".2%", False),
    Row("experts per token", "experts_per_token", ".3f"),
    Row("of them FFN experts", "ffn_experts_per_token", ".3f"),
    Row("load CV", "expert_load_cv", ".3f", True),
    Row("load entropy, 1 is even", "expert_entropy", ".3f", False),
    Row("dead experts", "dead_experts", "d", True),
    Row("distinct 2-grams in samples", "distinct_2", ".3f"),
    Row("repeated 4-grams in samples", "repetition_4gram", ".3f"),
    Row("BLEU of continuations", "bleu", ".2f", False),
    Row("chrF of continuations", "chrf", ".2f", False),
    Row("ROUGE-L of continuations", "rouge_l", ".4f", False),
    Row("exact matches of continuations", "exact_match", ".2%", False),
    Row("self-BLEU of continuations", "self_bleu", ".2f"),
    Row("distinct 2-grams in continuations", "continuation_distinct_2", ".3f"),
    Row("repeated 4-grams in continuations", "continuation_repetition_4gram", ".3f"),
    Row("coherence of continuations, nats per token", "coherence", ".3f"),
    Row("coherence of the references", "reference_coherence", ".3f"),
    Row("size, with the tokenizer", "model_bytes", "bytes", True, True),
    Row("weights, times smaller than float32", "compression_ratio", ".2f", None, True),
    Row("same top token as float", "parity_top1_agreement", ".2%", None, True),
    Row("same experts as float", "parity_expert_agreement", ".2%", None, True),
)


def render(report: Report) -> str:
    """The page, a function of its argument alone. All text is escaped."""
    environment = page_environment(Path(__file__).parent)
    environment.filters.update(number=_number, bytes=_bytes)
    contents = report.contents
    figures = contents["figures"]
    return environment.get_template("report.html.jinja").render(
        contents=contents,
        training=report.training,
        trained_on=_trained_on(report),
        settings=report.settings,
        seed=report.seed,
        cards=_cards(report),
        models=list(figures),
        rows=comparison(report),
        context_rows=context_rows(contents),
        task_rows=task_rows(contents),
        text_note=text_note(contents),
        strategies=STRATEGIES,
        strategy_notes=_strategy_notes(report.settings),
        samples=_samples(contents["samples"], report.settings.prompts),
        dead_percent=f"{DEAD_SHARE:.0%}",
        loss_curve=_trusted(charts.loss_curve(report.history, figures[FLOAT]["test_loss"]))
        if has_loss_of_text(report.history)
        else None,
        aligned=report.aligned and _aligned(report.aligned, report.history),
        position_curve=_trusted(charts.position_curve(contents["loss_by_position"])),
        heat_map=_trusted(_heat_map(contents["layers"], contents["expert_kinds"])),
    )


def _trained_on(report: Report) -> str:
    """What is known of the model's past: the text that it was trained on, where it comes from, or both."""
    corpus = report.training["corpus"]
    known = []
    if "train_documents" in corpus:
        known.append(f"trained on {_number(corpus['train_documents'])} documents ({_bytes(corpus['train_bytes'])})")
    elif "train_conversations" in corpus:
        known.append(f"trained on {_number(corpus['train_conversations'])} conversations, pairs or prompts")
    if report.origin:
        known.append(report.origin)
    return ", ".join(known) or "trained on text of which nothing is known"


def _aligned(aligned: Aligned, history: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "rows": aligned_rows(aligned),
        "cards": aligned_cards(aligned),
        "answers": aligned_answers(aligned),
        "prompts": len(aligned.answers),
        "curves": _trusted(charts.training_curves(history)),
    }


def text_note(contents: dict[str, Any]) -> str:
    """Which text was scored, in a sentence, where it isn't that of the shards which the model was trained on."""
    other = contents["protocol"].get("other_text")
    if other is None:
        return ""
    names = ", ".join(other["documents"])
    more = ", ..." if contents["protocol"]["documents"] > len(other["documents"]) else ""
    tokens = "encoded anew with the model's tokenizer" if other["reencoded"] else "with the model's tokenizer"
    return (
        f"The text is not of the shards that the model was trained on, but of {other['shards'][:12]} ({names}{more}),"
        f" {tokens}."
    )


def _trusted(text: str) -> Markup:
    """The figures hold numbers and our own words; no text from outside gets into them."""
    return Markup(text)  # noqa: S704


def _heat_map(layers: list[dict[str, Any]], kinds: list[str]) -> str:
    load_LE = np.asarray([layer["load"] for layer in layers])
    dead_LE = np.zeros(load_LE.shape, bool)
    for index, layer in enumerate(layers):
        dead_LE[index, layer["dead_experts"]] = True
    return charts.load_heat_map(load_LE / load_LE.mean(axis=1, keepdims=True), kinds, dead_LE)


def _cards(report: Report) -> list[dict[str, str]]:
    """The headline: value, what it is, and something to hold it against."""
    figures = report.contents["figures"]
    best = figures[FLOAT]
    reference = report.contents["references"]["bz2_bits_per_byte"]
    cards = [
        {
            "value": f"{best['test_bits_per_byte']:.3f}",
            "label": "bits per byte",
            "note": f"bz2 on this text: {reference:.2f}",
        },
        {
            "value": f"{best['test_perplexity']:.2f}",
            "label": "perplexity",
            "note": f"{best['test_loss']:.3f} nats per token",
        },
        {
            "value": f"{best['test_accuracy']:.1%}",
            "label": "next token right",
            "note": f"among the first five: {best['test_top5_accuracy']:.1%}",
        },
        {
            "value": f"{best['ffn_experts_per_token']:.2f}",
            "label": "FFN experts per token",
            "note": f"of {best['experts_per_token']:.2f} chosen; the others are free",
        },
    ]
    for name in list(figures)[1:]:
        increase = round(figures[name]["test_bits_per_byte"] - best["test_bits_per_byte"], 4)
        value = f"{increase + 0.0:.4f}"  # + 0.0 turns -0.0 into 0.0
        ratio = report.sizes[name].get("compression_ratio")
        note = f"weights {ratio:.1f} times smaller" if ratio else "against the float model"
        cards.append({"value": value, "label": f"bits per byte lost in {name}", "note": note})
    return cards


def comparison(report: Report) -> list[dict[str, Any]]:
    """Rows of the comparison, a `label`, a `name` and a cell for each model: its `value`, and the `change` from the
    float model's, both as text."""
    figures = report.contents["figures"]
    rows = []
    for row in ROWS:
        source = report.sizes if row.from_step else figures
        values = {name: source[name].get(row.name) for name in figures}
        if all(value is None for value in values.values()):
            continue
        cells = [_cell(row, value, values[FLOAT], is_float=name == FLOAT) for name, value in values.items()]
        rows.append({"label": row.label, "name": row.name, "cells": cells})
    return rows


def _cell(row: Row, value: float | None, base: float | None, *, is_float: bool) -> dict[str, str]:
    if value is None:
        return {"value": "", "change": "", "tone": ""}
    if row.form == "bytes":
        change = "" if is_float or not base else f"{value / base:.1%} of float"
        return {"value": _bytes(value), "change": change, "tone": ""}
    shown = f"{int(value):d}" if row.form == "d" else f"{value:{row.form}}"
    if is_float or base is None:
        return {"value": shown, "change": "", "tone": ""}
    difference = value - base
    tone = (
        ""
        if row.lower_is_better is None or not difference
        else "bad"
        if (difference > 0) == row.lower_is_better
        else "good"
    )
    form = {"d": "+.0f", ".2%": "+.2%"}.get(row.form, f"+{row.form}")
    change = f"{difference:{form}}".replace("%", " points")
    if not float(change.split()[0]):
        return {"value": shown, "change": "=", "tone": ""}
    return {"value": shown, "change": change, "tone": tone}


def _samples(samples: list[dict[str, str]], prompts: list[str]) -> list[dict[str, Any]]:
    """Per model and prompt, the continuations by strategy, and how many are those of the float model."""
    by_key = {(item["model"], item["strategy"], item["prompt"]): item["text"] for item in samples}
    models = list(dict.fromkeys(item["model"] for item in samples))
    groups = []
    for model in models:
        mine = {key[1:]: text for key, text in by_key.items() if key[0] == model}
        same = sum(text == by_key[(FLOAT, *key)] for key, text in mine.items())
        texts = [
            {"prompt": prompt, "continuations": [mine[strategy, prompt][len(prompt) :] for strategy in STRATEGIES]}
            for prompt in dict.fromkeys(prompts)
        ]
        groups.append({"model": model, "texts": texts, "same": same, "total": len(mine)})
    return groups


def _strategy_notes(settings: EvaluateConfig) -> dict[str, str]:
    chosen = settings.generation
    return {
        "greedy": "the most probable token each time",
        "beam": f"{chosen.num_beams} beams",
        "nucleus": f"top-p {chosen.top_p:g}, temperature {chosen.temperature:g}",
    }


def _number(value: float) -> str:
    """1,234 up to a million, then 1.23 M and so on."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    unit = min(int(math.log10(max(value, 1)) // 3), 3)
    return f"{value / 10 ** (3 * unit):.{0 if unit == 0 else 1}f} {('B', 'kB', 'MB', 'GB')[unit]}"
