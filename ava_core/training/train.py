"""Training from shards to a model folder: the loop, what is measured in it, and what it leaves behind."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ava_core.config.estimate import estimate
from ava_core.config.schema import ModelConfig
from ava_core.config.training import TrainConfig
from ava_core.data.batches import TrainingBatches, bits_per_byte
from ava_core.data.shards import ShardedSplit, load_splits_info
from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.diagnosis import NonFiniteError
from ava_core.runtime.progress import Progress
from ava_core.training.checkpoints import CheckpointFolder
from ava_core.training.engine import TrainingEngine
from ava_core.training.history import History
from ava_core.training.process import peak_memory_bytes, prepare
from ava_core.training.validation import mean_loss, packed_document_ids

log = logging.getLogger(__name__)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
RECENT_STEPS = 20
"""Steps that the reported training loss is the mean of: a single batch says little."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Attributes:
    metrics: figures that are the same on every run.
    timings: figures that a clock or a memory meter gave.
    """

    metrics: dict[str, float]
    timings: dict[str, float]


@dataclass(kw_only=True)
class _Clock:
    """Time spent in optimiser steps by this process, evaluations and checkpoints left out."""

    seconds: float = 0.0
    steps: int = 0
    _started: float = field(default=0.0, repr=False)

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._started
        self.steps += 1

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds if self.seconds else 0.0


def train(
    *,
    model_config: ModelConfig,
    train_config: TrainConfig,
    seed: int,
    shards: Path,
    output: Path,
    state: Path,
    threads: int,
    progress: Progress,
) -> TrainResult:
    """Train a model and write it to `output` as a Transformers folder with its tokenizer and history.

    Args:
        model_config: the architecture.
        train_config: how it is trained.
        seed: of the weights, the batches and all noise.
        shards: output of `ava preprocess`.
        output: an empty folder.
        state: a folder that outlives a killed run, for checkpoints and history.
        threads: CPU threads.
        progress: shows progress.

    Raises:
        AvaError: too little text, or the loss is no finite number.
        IntegrityError: the shards can't be read.
    """
    _require_tokenizer(shards)
    prepare(threads, seed)
    training, validation = (ShardedSplit.open(shards, name) for name in ("train", "validation"))
    batches = TrainingBatches(training.tokens, train_config.sequence_length, train_config.global_batch_size, seed)
    model = build_model(model_config, training)
    log.info(
        "train: %s parameters, %s steps of %s tokens (%.2f passes over the training split)",
        f"{model.num_parameters():,}",
        train_config.steps,
        f"{train_config.global_batch_size * train_config.sequence_length:,}",
        batches.epoch(train_config.steps),
    )
    engine = TrainingEngine(model, train_config)
    history = History(state / "history.jsonl")
    clock = _Clock()
    checkpoints = CheckpointFolder(state / "checkpoints", train_config.keep_checkpoints)
    _loop(engine, batches, training, validation, train_config, checkpoints, history, clock, progress)
    exact = engine.exact_state_dict()
    model.eval().float().load_state_dict(exact)
    model.save_pretrained(output, max_shard_size="2GB")
    for name in TOKENIZER_FILES:
        (output / name).write_bytes((shards / "tokenizer" / name).read_bytes())
    history.export(output)
    sizes = estimate(model_config, train_config, training.vocab_size)
    parameters = {"parameters": model.num_parameters(), "active_parameters": sizes.active_parameters}
    _write_record(output, shards, train_config, parameters)
    last = history.rows[-1]
    recent = [row["train_loss"] for row in history.rows[-RECENT_STEPS:]]
    tokens_per_step = train_config.global_batch_size * train_config.sequence_length
    return TrainResult(
        metrics={
            "train_loss": sum(recent) / len(recent),
            "validation_loss": last["validation_loss"],
            "validation_bits_per_byte": last["validation_bits_per_byte"],
            "tokens_seen": last["tokens_seen"],
            "steps": last["step"],
            **parameters,
        },
        timings={
            "tokens_per_second": clock.steps_per_second * tokens_per_step,
            "peak_memory_bytes": peak_memory_bytes(),
        },
    )


def build_model(config: ModelConfig, split: ShardedSplit) -> EnhancedMoEForCausalLM:
    """A model with fresh weights for the tokens of `split`; `<|pad|>` is the entry after the boundary token."""
    boundary = split.boundary_token_id
    return EnhancedMoEForCausalLM(
        EnhancedMoEConfig(
            **config.model_dump(),
            vocab_size=split.vocab_size,
            bos_token_id=boundary,
            eos_token_id=boundary,
            pad_token_id=boundary + 1,
        )
    )


def _loop(
    engine: TrainingEngine,
    batches: TrainingBatches,
    training: ShardedSplit,
    validation: ShardedSplit,
    config: TrainConfig,
    checkpoints: CheckpointFolder,
    history: History,
    clock: _Clock,
    progress: Progress,
) -> None:
    first = checkpoints.restore(engine)
    history.resume(first)
    if first:
        log.info("train: going on from the checkpoint of step %d", first)
    tokens_per_step = config.global_batch_size * config.sequence_length
    with progress.task("train", config.steps) as advance:
        for step in range(first, config.steps):
            windows = batches.batch(step)
            with clock:
                ids = packed_document_ids(windows[:, :-1], training.boundary_token_id)
                try:
                    figures = engine.step(torch.from_numpy(windows), ids)
                except NonFiniteError as error:
                    raise AvaError(
                        f"step {step + 1}: the training {error}: lower train.learning_rate"
                        f" (now {config.learning_rate:g}) or raise train.warmup_steps"
                    ) from error
            done = step + 1
            row = {"step": done, "tokens_seen": done * tokens_per_step, **figures}
            if done % config.evaluate_every == 0 or done == config.steps:
                row |= _measure(engine, validation, config, whole=done == config.steps)
            history.append(row)
            if done % config.checkpoint_every == 0 or done == config.steps:
                checkpoints.save(engine, done)
            advance(
                done,
                loss=f"{figures['train_loss']:.3f}",
                tokens_per_second=f"{clock.steps_per_second * tokens_per_step:,.0f}",
                **_latest_validation(history),
            )


def _measure(engine: TrainingEngine, split: ShardedSplit, config: TrainConfig, *, whole: bool) -> dict[str, float]:
    """Validation loss and bits per byte; of a part of the split, the bytes are in proportion to its tokens."""
    loss, count = mean_loss(
        engine.model,
        split,
        config.sequence_length,
        batch_size=config.micro_batch_size,
        limit=None if whole else config.evaluate_sequences,
    )
    share = count / len(split.tokens)
    return {
        "validation_loss": loss,
        "validation_bits_per_byte": bits_per_byte(loss * count, split.num_bytes * share),
    }


def _latest_validation(history: History) -> dict[str, str]:
    measured = (row for row in reversed(history.rows) if "validation_bits_per_byte" in row)
    row = next(measured, None)
    return {"validation_bits_per_byte": f"{row['validation_bits_per_byte']:.3f}"} if row else {}


def _require_tokenizer(shards: Path) -> None:
    for name in TOKENIZER_FILES:
        if not (shards / "tokenizer" / name).is_file():
            raise AvaError(f"{shards / 'tokenizer' / name}: no such file: run `ava preprocess` again")


def _write_record(output: Path, shards: Path, config: TrainConfig, parameters: dict[str, int]) -> None:
    """training.json: what later steps need to know of the training."""
    info = load_splits_info(shards)
    corpus = {
        f"{name}_{kind}": getattr(split, f"num_{kind}")
        for name, split in info.splits.items()
        for kind in ("documents", "tokens", "bytes")
    }
    record = {
        "sequence_length": config.sequence_length,
        "precision": config.precision,
        **parameters,
        "corpus": {**corpus, "vocab_size": info.vocab_size},
    }
    (output / "training.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
