"""The callbacks of every training."""

from __future__ import annotations

from pathlib import Path

from ava_core.config.train import TrainConfig
from ava_core.data.shards import ShardedSplit
from ava_core.progress import Progress
from ava_core.training.callbacks.base import Callback
from ava_core.training.callbacks.budget import Budget
from ava_core.training.callbacks.early_stopping import EarlyStopping
from ava_core.training.callbacks.experts import ExpertLoads
from ava_core.training.callbacks.progress import ProgressBar
from ava_core.training.callbacks.samples import Samples
from ava_core.training.callbacks.system import SystemMetrics
from ava_core.training.callbacks.tasks import Tasks


def default_callbacks(
    config: TrainConfig,
    progress: Progress,
    state: Path,
    tokenizer: Path | None = None,
    validation: ShardedSplit | None = None,
) -> list[Callback]:
    """Those that the configuration asks for, in the order in which they are called.

    Args:
        config: the training section.
        progress: shows progress.
        state: the training's state folder.
        tokenizer: folder of the tokenizer; without it there are no samples.
        validation: the split that benchmarks are made from; without it there are none.
    """
    callbacks: list[Callback] = [ExpertLoads(state)]
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(config.early_stopping_patience))
    if config.max_minutes is not None or config.max_tokens is not None:
        callbacks.append(Budget(config))
    if config.sample_every is not None and tokenizer is not None:
        callbacks.append(Samples(config.sample_every, state, tokenizer))
    if config.tasks_every is not None and tokenizer is not None and validation is not None:
        batch = config.micro_batch_size
        callbacks.append(
            Tasks(config.tasks_every, config.tasks, config.tasks_limit, batch, validation, tokenizer, state)
        )
    return [*callbacks, SystemMetrics(state), ProgressBar(progress)]
