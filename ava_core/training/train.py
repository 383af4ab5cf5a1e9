"""Training from shards to a model folder: how a training is built, run and written, whatever it is trained on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from ava_core.config.parameters import active_count
from ava_core.data.tokenizer import copy_tokenizer
from ava_core.distributed import group, peers
from ava_core.distributed.ranks import Ranks
from ava_core.files import write_json
from ava_core.origin import carry_origin
from ava_core.progress import Progress
from ava_core.runtime.digests import digest_tree, digest_value
from ava_core.training.adapting import keep_updates, parameters_without_updates
from ava_core.training.batch import Batches
from ava_core.training.beginning import Beginning
from ava_core.training.callbacks import CallbackList, default_callbacks
from ava_core.training.callbacks.profile import StepProfile
from ava_core.training.checkpoints import CheckpointFolder
from ava_core.training.ema import Ema
from ava_core.training.engine.engine import TrainingEngine
from ava_core.training.freezing import freeze
from ava_core.training.gradients import Guard, build_clipper
from ava_core.training.history import History
from ava_core.training.material import Material, Pretraining
from ava_core.training.memory.plan import MemoryPlan, plan_memory
from ava_core.training.memory.watch import MemoryWatch
from ava_core.training.objective import Objective, TrainedModel
from ava_core.training.preconditions import require_trainable
from ava_core.training.process import peak_memory_bytes, prepare
from ava_core.training.regularization import AdaptiveRegularizer
from ava_core.training.request import TrainRequest, TrainResult
from ava_core.training.schedules import RateSchedule
from ava_core.training.speed.clock import PhaseClock
from ava_core.training.speed.flops import utilization
from ava_core.training.speed.peak import measure_peak
from ava_core.training.teacher.lessons import record_of
from ava_core.training.trainer import Trainer

log = logging.getLogger(__name__)
RECORDS = ("experts.jsonl", "samples.jsonl")
"""Deterministic files that callbacks write into the state folder."""


def train(request: TrainRequest, progress: Progress) -> TrainResult:
    """Pretrain a model in this process, alone or as one of several ranks.

    Rank 0 writes it to `request.output` as a Transformers folder with its tokenizer and history. How many processes
    take part is decided by who starts them: `ava_core.launching`.

    Args:
        request: what is trained, and how.
        progress: shows progress.

    Raises:
        ConfigError: what is asked for can't be trained here; one line per fault.
        OutOfMemory: an allocation failed. A checkpoint may be there to go on from, with a smaller micro-batch.
        LostPeer: another rank has gone.
        AvaError: too little text, or the loss is not finite.
        IntegrityError: the shards or a checkpoint can't be read.
    """
    return train_on(Pretraining, request, progress)


def train_on(material: Callable[[TrainRequest], Material], request: TrainRequest, progress: Progress) -> TrainResult:
    """As `train`, on what `material` opens."""
    require_trainable(request)
    ranks = Ranks.from_environment()
    with peers.loss_explained(ranks.rank, request.state / "checkpoints") if ranks.size > 1 else nullcontext():
        return _Training(request, material(request), ranks, progress).run()


class _Training:
    """One attempt at a training in this process: built, run, and written."""

    def __init__(self, request: TrainRequest, material: Material, ranks: Ranks, progress: Progress) -> None:
        self.request, self.material, self.ranks, self.progress = request, material, ranks, progress
        self.model_config, self.config = request.model_config, request.train_config
        self.tokenizer = request.shards / "tokenizer"
        self.callbacks = CallbackList(
            default_callbacks(self.config, progress, request.state, self.tokenizer, material.held_out_text)
        )

    def run(self) -> TrainResult:
        """Train to the end and write the model folder (rank 0)."""
        group.connect(self.ranks)
        prepare(self.ranks.threads_of_each(self.request.threads), self.request.seed)
        beginning = Beginning(self.request, self._identity(), self.ranks, self.material.head)
        beginning.check()
        batches = self.material.batches(self.ranks, self.progress)
        model = beginning.build(self.material)
        self.vocab_size = model.config.vocab_size
        parameters = parameters_without_updates(model)
        objective = self.material.objective(model)
        freeze(model, self.config)
        plan = plan_memory(model, self.config, self.ranks)
        plan.apply(model)
        log.info(
            "train: %s parameters, %s steps of %s tokens (%.2f passes over the training split)",
            f"{parameters:,}",
            self.config.steps,
            f"{self.config.global_batch_size * self.config.sequence_length:,}",
            self.material.passes(self.config.steps),
        )
        self.callbacks.callbacks.append(MemoryWatch(plan))
        if self.request.profile is not None and self.config.profile is not None:
            self.callbacks.callbacks.append(StepProfile(self.config.profile, self.request.profile))
        trainer = self._trainer(model, objective, batches)
        start = beginning.start(batches)
        trainer.run(partial(start, trainer.engine) if start else None)
        peak_bytes = peak_memory_bytes()
        plan.compare(peak_bytes)
        if self.request.kept is not None:
            trainer.checkpoints.keep(self.request.kept)
        exact = trainer.engine.exact_state_dict() | (trainer.ema.average if trainer.ema else {})
        result = self._result(trainer, plan, peak_bytes, parameters)
        if self.ranks.is_first:
            finished = beginning.finished(self.material, exact, trainer.model)
            if beginning.parent and self.config.adapter.kind:
                keep_updates(finished, self.config.adapter, beginning.parent.digest, self.request.output)
            self._write(finished, trainer.history, result, beginning.record)
        self.ranks.barrier()
        group.disconnect()
        return result

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with this training to be resumed from."""
        return {
            "model": digest_value(self.model_config.model_dump(mode="json")),
            "tokenizer": digest_tree(self.tokenizer),
            "optimizer": self.config.optimizer,
            "precision": self.config.precision,
            **({"adapter": self.config.adapter.model_dump_json()} if self.config.adapter.kind else {}),
            "loss.multi_token_depth": self.config.loss.multi_token_depth if self.config.loss.multi_token_weight else 0,
        }

    def _trainer(self, model: TrainedModel, objective: Objective[Any], batches: Batches) -> Trainer:
        config, ranks = self.config, self.ranks
        engine = TrainingEngine(model, config, ranks, objective)
        buffers = [name for name, _ in model.named_buffers()]
        regularizer = None
        if config.regularization.adaptive:
            regularizer = AdaptiveRegularizer(model, engine.optimizer, config, self.model_config)
        return Trainer(
            config=config,
            ranks=ranks,
            engine=engine,
            batches=batches,
            validation=self.material.validation(),
            rates=RateSchedule(engine.optimizer, config),
            clipper=build_clipper(config),
            guard=Guard(config.guard, loss_scaling=config.precision == "fp16"),
            regularizer=regularizer,
            ema=Ema(config.ema.decay, config.ema.every, buffers) if config.ema.decay else None,
            checkpoints=CheckpointFolder(self.request.state / "checkpoints", config, ranks, self._identity()),
            history=History(self.request.state / "history.jsonl", durable=ranks.is_first),
            clock=PhaseClock(),
            callbacks=self.callbacks,
        )

    def _result(self, trainer: Trainer, plan: MemoryPlan, peak_bytes: int, parameters: int) -> TrainResult:
        rows, clock = trainer.history.rows, trainer.clock
        last, speed = rows[-1], trainer.tokens_per_second
        peak = self.ranks.size * measure_peak(self.model_config, self.config, self.vocab_size, trainer.device)
        metrics = {
            "train_loss": trainer.recent_loss,
            **{name: last[name] for name in self.material.figures},
            "tokens_seen": last["tokens_seen"],
            "steps": last["step"],
            "parameters": parameters,
            "active_parameters": active_count(self.model_config, self.vocab_size),
        }
        timings = {
            "tokens_per_second": speed,
            "peak_memory_bytes": peak_bytes,
            "estimated_memory_bytes": plan.total_bytes,
            "overhead_share": clock.overhead_share,
            "model_flops_utilization": utilization(self.model_config, self.config, self.vocab_size, rows, speed, peak),
            "training_seconds": clock.seconds,
            "startup_seconds": trainer.startup_seconds,
        }
        return TrainResult(metrics=metrics, timings=timings)

    def _write(self, model: TrainedModel, history: History, result: TrainResult, beginning: dict[str, Any]) -> None:
        """The model folder: weights in float32, tokenizer, history, what later steps need to know."""
        output, state = self.request.output, self.request.state
        generation = getattr(model, "generation_config", None)  # a classifier has none
        if self.material.ends and generation is not None:
            generation.eos_token_id = [self.material.boundary_token_id, *self.material.ends]
        model.eval().save_pretrained(output, max_shard_size="2GB")
        copy_tokenizer(self.tokenizer, output, model.config.max_position_embeddings)
        for name in RECORDS:
            if (state / name).exists():
                shutil.copyfile(state / name, output / name)
        history.export(output)
        record = {
            "sequence_length": self.config.sequence_length,
            "precision": self.config.precision,
            "parameters": result.metrics["parameters"],
            "active_parameters": result.metrics["active_parameters"],
            "corpus": self.material.corpus(),
            **beginning,
            **record_of(self.request),
        }
        write_json(output / "training.json", record)
        if self.request.init:
            carry_origin(self.request.init, output)
