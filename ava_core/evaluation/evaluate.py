"""The evaluate step: score the trained and the quantised models, sample from them, and write the report.

Protocol of the scores: every token of the test split, boundary tokens included, is predicted once, in windows of the
training context that don't overlap; attention doesn't cross document boundaries. Bits per byte = nats / ln 2 / bytes
of the text.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ava_core.config.evaluate import EvaluateConfig
from ava_core.data.reencoding import ModelText, open_text
from ava_core.data.shards import ShardedSplit, document_names
from ava_core.data.tokenizer import load_tokenizer
from ava_core.evaluation import classification, comparable, losses, summary
from ava_core.evaluation.benchmarks import Benchmarks
from ava_core.evaluation.candidates import (
    Candidate,
    describe_text,
    find_candidates,
    is_own_text,
    read_history,
    read_training,
)
from ava_core.evaluation.continuations import (
    Continuations,
    Passage,
    measure_continuations,
    open_passages,
    write_continuations,
)
from ava_core.evaluation.experts import LayerUtilisation, describe_layer, expert_kinds, summarise
from ava_core.evaluation.long_context import LongContext, LongScore
from ava_core.evaluation.look_ups import LookUps
from ava_core.evaluation.nearest_tokens import NearestTokens
from ava_core.evaluation.references import bz2_bits_per_byte
from ava_core.evaluation.report import Report, render
from ava_core.evaluation.report.aligned import read_aligned
from ava_core.evaluation.samples import Sample, describe_samples, draw_samples
from ava_core.evaluation.scoring import Score, describe_score, score
from ava_core.evaluation.units import Units, divide
from ava_core.files import write_json
from ava_core.generation.loading import load_model
from ava_core.origin import read_origin
from ava_core.progress import Progress
from ava_core.runtime import manifest

log = logging.getLogger(__name__)
SPLIT = "test"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the step gives beside its files.

    Attributes:
        metrics: figures that are the same on every run; those of a quantised model begin with its scheme.
        timings: of searches in an index or a datastore, if there is one; the step has none of its own.
    """

    metrics: dict[str, float]
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured on one model.

    Attributes:
        candidate: the model.
        score: its sums over the test split.
        layers: expert utilisation of each layer.
        samples: its continuations of the prompts.
        figures: test loss and accuracy, expert utilisation and diversity of the samples, by name without prefix.
        expert_kinds: kind of each expert, in their order.
        continuations: what it wrote after the passages, if there are any.
        long: its sums in long windows, if those were asked for.
    """

    candidate: Candidate
    score: Score
    layers: list[LayerUtilisation]
    samples: list[Sample]
    figures: dict[str, float]
    expert_kinds: list[str]
    continuations: Continuations | None = None
    long: LongScore | None = None


def evaluate(
    *,
    config: EvaluateConfig,
    seed: int,
    model: Path,
    shards: Path,
    quantized: list[Path],
    index: Path | None = None,
    output: Path,
    state: Path,
    threads: int,
    progress: Progress,
) -> Evaluation:
    """Fill `output` with evaluation.json, losses.jsonl, report.html, summary.md, classification.json, and of benchmarks
    and continuations, if there are any, `tasks` and continuations.jsonl.

    Args:
        config: batch size, prompts and decoding.
        seed: of nucleus sampling.
        model: a model folder.
        shards: output of `ava preprocess`, the model's or others; tokens of another tokenizer are encoded anew.
        quantized: outputs of `ava quantize`, one for each scheme.
        index: output of `ava index`, which is measured too; or None.
        output: an empty folder.
        state: folder for scores and samples while they are made; after a kill the next run resumes from it.
        threads: CPU threads; the order of summation, and so the last bits of the figures, depends on it.
        progress: shows a bar for the tokens scored.

    Raises:
        AvaError: an input is missing, damaged or doesn't belong to the others, a prompt is too long, or a task fails.
        ConfigError: a task can't be run here.
    """
    torch.set_num_threads(threads)
    training = read_training(model)
    candidates = find_candidates(model, quantized)
    aligned = read_aligned(model)
    text = open_text(model, shards, SPLIT)
    split, tokenizer = text.split, load_tokenizer(model)
    other = None if is_own_text(model, shards) else describe_text(text, shards, SPLIT)
    benchmarks = Benchmarks.open(config, text.documents, state)
    units = divide(split, text.documents, document_names(shards, SPLIT), tokenizer)
    passages = open_passages(config.continuations, split, tokenizer, seed)
    looked_up = None if index is None else LookUps.open(config.retrieval, index, model, seed, threads)
    length: int = training["sequence_length"]
    long = LongContext.open(config, model, split, tokenizer, length)
    nearest = NearestTokens.open(config, model, shards, length, state, threads)
    measurements = [
        _measure(
            candidate,
            text.split,
            units,
            config=config,
            sequence_length=length,
            seed=seed,
            state=state,
            threads=threads,
            benchmarks=benchmarks,
            passages=passages,
            long=long,
            progress=progress,
        )
        for candidate in candidates
    ]
    contents = {**_contents(measurements, text, other, training, manifest.read(shards)), **benchmarks.contents()}
    scores = {measurement.candidate.name: measurement.score for measurement in measurements}
    if long:
        contents |= long.contents({item.candidate.name: item.long for item in measurements if item.long})
    contents |= comparable.contents(scores, model, training, config, seed)
    beside = [part for part in (looked_up, nearest) if part is not None]
    for part in beside:
        part.run(progress)
        contents |= part.contents()
        contents["figures"][candidates[0].name] |= part.figures
    if looked_up is not None:
        looked_up.write(output)
    losses.write(output, units.documents, scores)
    benchmarks.write(output)
    write_continuations(output, passages, {item.candidate.name: item.continuations for item in measurements})
    (output / "evaluation.json").write_text(json.dumps(contents, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    report = Report(
        contents=contents,
        training=training,
        origin=str(read_origin(model) or ""),
        history=read_history(model / "history.jsonl"),
        aligned=aligned,
        sizes={measurement.candidate.name: measurement.candidate.sizes for measurement in measurements},
        settings=config,
        seed=seed,
    )
    (output / "report.html").write_text(render(report))
    (output / "summary.md").write_text(summary.to_markdown(report))
    answers = measurements[0].score
    metadata = classification.describe(answers.right, answers.wrong, answers.class_pairs)
    write_json(output / "classification.json", metadata)
    return Evaluation(
        metrics={
            f"{measurement.candidate.prefix}{name}": value
            for measurement in measurements
            for name, value in measurement.figures.items()
        },
        timings={name: value for part in beside for name, value in part.timings.items()},
    )


def _measure(
    candidate: Candidate,
    split: ShardedSplit,
    units: Units,
    *,
    config: EvaluateConfig,
    sequence_length: int,
    seed: int,
    state: Path,
    threads: int,
    benchmarks: Benchmarks,
    passages: list[Passage],
    long: LongContext | None,
    progress: Progress,
) -> Measurement:
    """Samples first: they are quick, and show a prompt that is too long before the long work."""
    name = candidate.name
    model, tokenizer = load_model(candidate.folder, threads)
    log.info("evaluate: sampling from the %s model", name)
    samples = draw_samples(name, model, tokenizer, config=config, seed=seed, kept=state / f"{name}.samples.json")
    with progress.task(f"scoring {name}", split.num_tokens) as advance:
        result = score(
            model,
            split.tokens,
            sequence_length=sequence_length,
            boundary_token_id=split.boundary_token_id,
            token_classes=classification.token_classes(tokenizer, model.config.vocab_size),
            units=units.of_token,
            batch_size=config.batch_size,
            kept=state / f"{name}.score.json",
            advance=advance,
        )
    layers = [
        describe_layer(index, counts, result.tokens, model.config.num_ffn_experts)
        for index, counts in enumerate(result.layers)
    ]
    continuations = None
    if passages:
        continuations = measure_continuations(
            passages, model, tokenizer, config=config, seed=seed, kept=state / f"{name}.continuations.json"
        )
    long_score = long.measure(name, model, state, progress) if long else None
    figures = {
        **describe_score(result, split.num_bytes),
        **summarise(layers),
        **describe_samples(samples),
        **(continuations.figures if continuations else {}),
        **(long_score.figures if long_score else {}),
        **benchmarks.run(name, model, tokenizer, progress),
    }
    return Measurement(
        candidate=candidate,
        score=result,
        layers=layers,
        samples=samples,
        figures=figures,
        expert_kinds=expert_kinds(model.config),
        continuations=continuations,
        long=long_score,
    )


def _contents(
    measurements: list[Measurement],
    text: ModelText,
    other: dict[str, Any] | None,
    training: dict[str, Any],
    shards: manifest.Manifest,
) -> dict[str, Any]:
    """evaluation.json: all that was measured, for people and for the registry's gate."""
    first, split = measurements[0], text.split
    records = {"shards": shards, **{item.candidate.name: item.candidate.record for item in measurements}}
    return {
        "protocol": {
            "split": SPLIT,
            "sequence_length": training["sequence_length"],
            "tokens": first.score.tokens,
            "bytes": split.num_bytes,
            "documents": split.num_documents,
            **({} if other is None else {"other_text": other}),
        },
        "references": {"bz2_bits_per_byte": bz2_bits_per_byte("".join(text.documents).encode())},
        "figures": {measurement.candidate.name: measurement.figures for measurement in measurements},
        "expert_kinds": first.expert_kinds,
        "layers": [layer.to_json() for layer in first.layers],
        "quantized_layers": {
            measurement.candidate.name: [layer.to_json() for layer in measurement.layers]
            for measurement in measurements[1:]
        },
        "loss_by_position": [
            nats / tokens if tokens else None
            for nats, tokens in zip(first.score.position_nats, first.score.position_tokens, strict=True)
        ],
        "samples": [sample.to_json() for measurement in measurements for sample in measurement.samples],
        "provenance": {
            name: {field: getattr(record, field) for field in ("step", "version", "digest", "key", "code", "config")}
            for name, record in records.items()
        },
    }
