"""Training from shards to a model folder: what a training is built from, and what it leaves behind."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ava_core.config.hardware import Hardware, detect
from ava_core.config.memory import require_memory
from ava_core.config.model import ModelConfig
from ava_core.config.parameters import active_count
from ava_core.config.train import TrainConfig
from ava_core.data.curriculum import CurriculumBatches, build_batches
from ava_core.data.shards import ShardedSplit, load_splits_info
from ava_core.data.tokenizer import CONFIG_FILE, FILE, copy_tokenizer, read_settings
from ava_core.distributed import peers
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError, ConfigError
from ava_core.launching import launch
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.runtime.digests import digest_tree, digest_value
from ava_core.runtime.progress import Progress
from ava_core.training.callbacks import CallbackList, default_callbacks
from ava_core.training.checkpoints import CheckpointFolder, Restored, check_resume, resume_from
from ava_core.training.difficulty import reference_difficulty
from ava_core.training.ema import Ema
from ava_core.training.engine.engine import TrainingEngine, prepare_loss
from ava_core.training.gradients import Guard, build_clipper
from ava_core.training.history import History
from ava_core.training.memory.out_of_memory import MicroBatch, until_it_fits
from ava_core.training.memory.plan import MemoryPlan, plan_memory
from ava_core.training.memory.watch import MemoryWatch
from ava_core.training.process import peak_memory_bytes, prepare
from ava_core.training.regularization import AdaptiveRegularizer
from ava_core.training.schedules import RateSchedule
from ava_core.training.speed.clock import PhaseClock
from ava_core.training.speed.flops import utilization
from ava_core.training.speed.peak import measure_peak
from ava_core.training.trainer import Trainer

log = logging.getLogger(__name__)
RECORDS = ("experts.jsonl", "samples.jsonl")
"""What callbacks leave in the state folder that is the same on every run."""
HEADS = "prediction_heads."
"""Names of weights that only the training has."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Attributes:
    metrics: figures that are the same on every run.
    timings: figures that a clock or a memory meter gave.
    """

    metrics: dict[str, float]
    timings: dict[str, float]


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
    resume: Path | None = None,
    reference: Path | None = None,
    kept: Path | None = None,
) -> TrainResult:
    """Train a model and write it to `output` as a Transformers folder with its tokenizer and history.

    As many processes as the configuration says take part; those that aren't there yet are started.

    Args:
        model_config: the architecture.
        train_config: how it is trained.
        seed: of the weights, the batches and all noise.
        shards: output of `ava preprocess`.
        output: an empty folder.
        state: a folder that outlives a killed run, for checkpoints and history.
        threads: CPU threads of this process, or of all that it starts.
        progress: shows progress.
        resume: a checkpoint of another training of the same model to begin from.
        reference: output of `ava train` whose losses order the curriculum.
        kept: where checkpoints go that outlive the training; None: none does.

    Raises:
        ConfigError: what is asked for can't be trained here; one line per fault.
        AvaError: too little text, or the loss is no finite number.
        IntegrityError: the shards or a checkpoint can't be read.
    """
    _require_tokenizer(shards)
    ranks = Ranks.from_environment()
    if ranks.size == 1 and train_config.hostfile is None:  # too many processes are too much memory, for that reason
        launch.require_devices(train_config.processes)
    require_memory(model_config, train_config, load_splits_info(shards).vocab_size, _machine())
    request: dict[str, Any] = {
        "model_config": model_config,
        "seed": seed,
        "shards": shards,
        "output": output,
        "state": state,
        "threads": threads,
        "resume": resume,
        "reference": reference,
        "kept": kept,
    }

    def attempt(config: TrainConfig) -> TrainResult:
        if ranks.size == 1 and (config.processes > 1 or config.hostfile):
            return TrainResult(**launch.train_in_processes(train_config=config, progress=progress, **request))
        return _Training(train_config=config, ranks=ranks, progress=progress, **request).run()

    if ranks.size > 1:  # whoever started the ranks halves the micro-batch and starts them again
        with peers.loss_explained(ranks.rank, state / "checkpoints"):
            return attempt(train_config)
    return until_it_fits(MicroBatch(train_config, state), attempt)


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


class _Training:
    """One attempt at a training in this process: what it is built from, the run, and what it leaves."""

    def __init__(
        self,
        *,
        model_config: ModelConfig,
        train_config: TrainConfig,
        seed: int,
        shards: Path,
        output: Path,
        state: Path,
        threads: int,
        resume: Path | None,
        reference: Path | None,
        kept: Path | None,
        ranks: Ranks,
        progress: Progress,
    ) -> None:
        self.model_config, self.config, self.seed = model_config, train_config, seed
        self.shards, self.output, self.state, self.kept = shards, output, state, kept
        self.ranks, self.threads = ranks, threads
        self.resume, self.reference = resume, reference
        self.training, self.validation = (ShardedSplit.open(shards, name) for name in ("train", "validation"))
        self.callbacks = CallbackList(default_callbacks(train_config, progress, state, shards / "tokenizer"))

    def run(self) -> TrainResult:
        """Train to the end and write the model folder (rank 0)."""
        self.ranks.connect()
        prepare(self.threads, self.seed)
        if self.resume:
            self._check_resume(self.resume)
        batches = self._batches()
        model = build_model(self.model_config, self.training)
        parameters = model.num_parameters()
        prepare_loss(model, self.config)
        plan = plan_memory(model, self.config, self.ranks)
        plan.apply(model)
        log.info(
            "train: %s parameters, %s steps of %s tokens (%.2f passes over the training split)",
            f"{parameters:,}",
            self.config.steps,
            f"{self.config.global_batch_size * self.config.sequence_length:,}",
            batches.passes(0, self.config.steps),
        )
        self.callbacks.callbacks.append(MemoryWatch(plan))
        trainer = self._trainer(model, batches)
        trainer.run(partial(self._start, trainer.engine, self.resume) if self.resume else None)
        peak_bytes = peak_memory_bytes()
        plan.compare(peak_bytes)
        if self.kept is not None:
            trainer.checkpoints.keep(self.kept)
        exact = trainer.engine.exact_state_dict() | (trainer.ema.average if trainer.ema else {})
        result = self._result(trainer, plan, peak_bytes, parameters)
        if self.ranks.is_first:
            self._write(exact, trainer.history, result)
        self.ranks.barrier()
        self.ranks.disconnect()
        return result

    def _check_resume(self, folder: Path) -> None:
        found = check_resume(folder, self._identity(), self.config, self.ranks)
        if found.step >= self.config.steps:
            raise ConfigError(
                f"--resume {folder}: is of step {found.step}: train.steps = {self.config.steps} counts from the"
                " beginning and must be more"
            )

    def _start(self, engine: TrainingEngine, folder: Path) -> Restored:
        return resume_from(engine, folder, self._identity(), self.ranks, self.config)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this training to be gone on with."""
        return {
            "model": digest_value(self.model_config.model_dump(mode="json")),
            "tokenizer": digest_tree(self.shards / "tokenizer"),
            "optimizer": self.config.optimizer,
            "precision": self.config.precision,
            "loss.multi_token_depth": self.config.loss.multi_token_depth if self.config.loss.multi_token_weight else 0,
        }

    def _batches(self) -> CurriculumBatches:
        split, difficulty = self.training, None
        if self.reference:
            if self.config.curriculum.difficulty != "reference":
                raise ConfigError("--reference: is used only with train.curriculum.difficulty = reference")
            model = EnhancedMoEForCausalLM.from_pretrained(
                self.reference, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
            difficulty = reference_difficulty(
                model,
                split.tokens,
                self.config.sequence_length,
                vocab_size=split.vocab_size,
                boundary_token_id=split.boundary_token_id,
            )
        boundary = split.boundary_token_id
        return build_batches(split.tokens, boundary, self.config, self.seed, difficulty, split.fingerprint)

    def _trainer(self, model: EnhancedMoEForCausalLM, batches: CurriculumBatches) -> Trainer:
        config, ranks = self.config, self.ranks
        engine = TrainingEngine(model, config, ranks)
        buffers = [name for name, _ in model.named_buffers()]
        regularizer = None
        if config.regularization.adaptive:
            regularizer = AdaptiveRegularizer(model, engine.optimizer, config, self.model_config)
        return Trainer(
            config=config,
            ranks=ranks,
            engine=engine,
            batches=batches,
            validation=self.validation,
            rates=RateSchedule(engine.optimizer, config),
            clipper=build_clipper(config),
            guard=Guard(config.guard, loss_scaling=config.precision == "fp16"),
            regularizer=regularizer,
            ema=Ema(config.ema.decay, config.ema.every, buffers) if config.ema.decay else None,
            checkpoints=CheckpointFolder(self.state / "checkpoints", config, ranks, self._identity()),
            history=History(self.state / "history.jsonl", durable=ranks.is_first),
            clock=PhaseClock(),
            callbacks=self.callbacks,
        )

    def _result(self, trainer: Trainer, plan: MemoryPlan, peak_bytes: int, parameters: int) -> TrainResult:
        rows, clock = trainer.history.rows, trainer.clock
        last, speed = rows[-1], trainer.tokens_per_second
        peak = self.ranks.size * measure_peak(self.model_config, self.config, self.training.vocab_size, trainer.device)
        metrics = {
            "train_loss": trainer.recent_loss,
            "validation_loss": last["validation_loss"],
            "validation_bits_per_byte": last["validation_bits_per_byte"],
            "tokens_seen": last["tokens_seen"],
            "steps": last["step"],
            "parameters": parameters,
            "active_parameters": active_count(self.model_config, self.training.vocab_size),
        }
        timings = {
            "tokens_per_second": speed,
            "peak_memory_bytes": peak_bytes,
            "estimated_memory_bytes": plan.total_bytes,
            "overhead_share": clock.overhead_share,
            "model_flops_utilization": utilization(
                self.model_config, self.config, self.training.vocab_size, rows, speed, peak
            ),
            "training_seconds": clock.seconds,
            "startup_seconds": trainer.startup_seconds,
        }
        return TrainResult(metrics=metrics, timings=timings)

    def _write(self, exact: dict[str, Any], history: History, result: TrainResult) -> None:
        """The model folder: weights in float32, tokenizer, history, what later steps need to know."""
        model = build_model(self.model_config, self.training)
        model.load_state_dict({name: value for name, value in exact.items() if not name.startswith(HEADS)})
        model.eval().save_pretrained(self.output, max_shard_size="2GB")
        copy_tokenizer(self.shards / "tokenizer", self.output, model.config.max_position_embeddings)
        for name in RECORDS:
            if (self.state / name).exists():
                shutil.copyfile(self.state / name, self.output / name)
        history.export(self.output)
        info = load_splits_info(self.shards)
        corpus = {
            f"{name}_{kind}": getattr(split, f"num_{kind}")
            for name, split in info.splits.items()
            for kind in ("documents", "tokens", "bytes")
        }
        record = {
            "sequence_length": self.config.sequence_length,
            "precision": self.config.precision,
            "parameters": result.metrics["parameters"],
            "active_parameters": result.metrics["active_parameters"],
            "corpus": {**corpus, "vocab_size": info.vocab_size},
        }
        (self.output / "training.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def _machine() -> Hardware:
    """This machine, with GPUs only if PyTorch may use them."""
    machine = detect()
    return machine if torch.cuda.is_available() else replace(machine, gpus=0)


def _require_tokenizer(shards: Path) -> None:
    for name in (FILE, CONFIG_FILE):
        if not (shards / "tokenizer" / name).is_file():
            raise AvaError(f"{shards / 'tokenizer' / name}: no such file: run `ava preprocess` again")
    read_settings(shards / "tokenizer")  # or a damaged file would be found at the end
