"""The predictions that a training learns from: found in the work folder, or computed there by all ranks together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ava_core.config.hardware import kernels_choice
from ava_core.config.train_sections import TeacherConfig
from ava_core.data.shards import ShardedSplit
from ava_core.data.tokenizer_identity import gives_same_ids
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.origin import read_origin
from ava_core.progress import Progress
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_value
from ava_core.runtime.reading import read_object
from ava_core.runtime.work import Entry, WorkStore
from ava_core.training.initial import Parent, load_parent
from ava_core.training.precision import set_weight_dtype, weight_dtype
from ava_core.training.request import TrainRequest
from ava_core.training.teacher.computing import Reading
from ava_core.training.teacher.predictions import Predictions

log = logging.getLogger(__name__)
ENTRIES = "teacher"
"""Folder of the work folder for predictions, pruned as the steps' own."""


def require_teacher(request: TrainRequest) -> None:
    """Refuse a teacher of another vocabulary, or of a shorter context.

    Raises:
        ConfigError: it is such a one.
        AvaError: it has no tokenizer.
    """
    folder = request.teacher
    if folder is None:
        return
    if not gives_same_ids(folder, request.shards / "tokenizer"):
        raise ConfigError(
            f"train.teacher.model = {folder}: its vocabulary is not that of {request.shards}, so its predictions would"
            f" be of other tokens: preprocess the text with the teacher's tokenizer (--set tokenizer.from={folder}), or"
            " choose a teacher that was trained with this one"
        )
    longest, needed = _architecture(folder).max_position_embeddings, request.train_config.sequence_length
    if longest < needed:
        raise ConfigError(
            f"train.teacher.model = {folder}: has a context of {longest} tokens: train.sequence_length = {needed} must"
            " be at most that"
        )


def prepare_lessons(request: TrainRequest, split: ShardedSplit, ranks: Ranks, progress: Progress) -> Predictions | None:
    """The teacher's predictions on the training split, complete; None without a teacher.

    To be called by all ranks, which compute the parts that are missing in turns; so whoever is killed goes on from the
    parts that are there.

    Raises:
        IntegrityError: the teacher's weights can't be read, or aren't those of its architecture.
    """
    folder, config = request.teacher, request.train_config.teacher
    if folder is None:
        return None
    top_k = min(config.top_k, split.vocab_size)
    key = digest_value(_identity(request, split, ranks, top_k))
    entry = WorkStore(request.work).entry(ENTRIES, key) if request.work else Entry(request.state / ENTRIES)
    predictions = Predictions(entry.output, len(split.tokens) - 1, top_k)
    with entry.locked() if ranks.is_first else nullcontext():
        predictions.folder.mkdir(parents=True, exist_ok=True)
        own = [part for part in range(predictions.parts) if part % ranks.size == ranks.rank]
        missing = [part for part in own if not predictions.is_whole(part)]
        if missing:
            _compute(request, split, ranks, predictions, missing, progress)
        elif ranks.is_first:
            log.info("train: the predictions of the teacher are taken from %s", entry.folder)
        ranks.barrier()
    return predictions


def record_of(request: TrainRequest) -> dict[str, Any]:
    """For training.json: the teacher by its digest, and how it was learnt from; empty without one."""
    config: TeacherConfig = request.train_config.teacher
    if request.teacher is None:
        return {}
    origin = read_origin(request.teacher)
    settings = config.model_dump(mode="json", exclude={"model"})
    found = {"model": manifest.read(request.teacher).digest, **settings}
    return {"teacher": found | ({"origin": str(origin)} if origin else {})}


def _identity(request: TrainRequest, split: ShardedSplit, ranks: Ranks, top_k: int) -> dict[str, Any]:
    """All that decides the predictions' bytes."""
    assert request.teacher is not None
    return {
        "teacher": manifest.read(request.teacher).digest,
        "stream": split.fingerprint,
        "vocab_size": split.vocab_size,
        "context": request.train_config.sequence_length,
        "top_k": top_k,
        "temperature": request.train_config.teacher.temperature,
        "precision": request.train_config.precision,
        "device": ranks.device.type,
        "threads": ranks.threads_of_each(request.threads),
        "kernels": kernels_choice(),
        "code": request.code,
    }


def _compute(
    request: TrainRequest,
    split: ShardedSplit,
    ranks: Ranks,
    predictions: Predictions,
    parts: list[int],
    progress: Progress,
) -> None:
    config = request.train_config
    assert request.teacher is not None
    log.info("train: computes the predictions of the teacher %s", request.teacher)
    reading = Reading(
        _load(request.teacher, ranks, weight_dtype(config)), split, config.sequence_length, config.teacher.temperature
    )
    spans = [predictions.span(part) for part in parts]
    done = 0
    with progress.task("teacher", sum(end - begin for begin, end in spans)) as advance:
        for part, (begin, end) in zip(parts, spans, strict=True):
            reading.write(predictions, part, partial(_advance, advance, done))
            done += end - begin


def _advance(advance: Callable[[float], None], before: int, count: int) -> None:
    advance(before + count)


def _load(folder: Path, ranks: Ranks, dtype: torch.dtype) -> EnhancedMoEForCausalLM:
    parent = Parent.read(folder)
    with torch.random.fork_rng(devices=[]):  # the student's weights are drawn as without a teacher
        model = EnhancedMoEForCausalLM(_architecture(folder))
    load_parent(model, parent)
    set_weight_dtype(model, dtype, accumulated=False)
    return model.eval().to(ranks.device)


def _architecture(folder: Path) -> EnhancedMoEConfig:
    return EnhancedMoEConfig.from_dict(read_object(folder / "config.json"))
