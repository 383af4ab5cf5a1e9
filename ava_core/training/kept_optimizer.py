"""The optimiser's state of the training that made a model, for one that begins from the model (`train.keep_optimizer`).

It lies in the work folder, in the entry of the step that made the model, if that training kept the checkpoint
of its last step. The weights are the model's; so the state must be that of these weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.runtime.work import WorkStore
from ava_core.training.checkpoints import Checkpoint, check_kept
from ava_core.training.initial import Parent, same_weights

WITHOUT = "leave keep_optimizer out"


def find_kept(
    parent: Parent, work: Path | None, identity: dict[str, Any], config: TrainConfig, ranks: Ranks
) -> Checkpoint:
    """The checkpoint of the last step of the training that made a model.

    Args:
        parent: the model.
        work: the work folder.
        identity: what a checkpoint must have in common with the training that begins to be resumed from.
        config, ranks: of that training.

    Raises:
        ConfigError: there is none, or the optimiser was another one.
    """
    folder = WorkStore(work or Path()).entry(parent.step, parent.key).kept / "checkpoints"
    return check_kept(folder, parent.steps, identity, config, ranks, _asked(parent))


def require_no_growth(parent: Parent, entries: int) -> None:
    """Refuse a tokenizer that has got entries since.

    Raises:
        ConfigError: `entries` of them.
    """
    if entries > 0:
        raise ConfigError(
            f"{_asked(parent)}: the tokenizer has got {entries} entries since, of whose rows its optimiser has no"
            f" state: {WITHOUT}"
        )


def require_own(parent: Parent, checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> None:
    """Refuse a state that came with other weights than the model's: it says nothing of these.

    Args:
        parent: the model.
        checkpoint: what was loaded.
        weights: exact ones that came with it.

    Raises:
        ConfigError: they differ.
    """
    if not same_weights(parent, weights):
        raise ConfigError(
            f"{_asked(parent)}: its weights are an average of those that were trained (train.ema, or"
            f" adamw_schedule_free), to which the optimiser's state belongs: {WITHOUT}, or go on from the trained ones"
            f" with --resume {checkpoint.folder}"
        )


def _asked(parent: Parent) -> str:
    return f"train.keep_optimizer = true: {parent.folder}"
