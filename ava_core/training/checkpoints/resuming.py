"""Going on from a checkpoint: the same run, or another one that begins where a checkpoint ends.

A checkpoint is loaded only after its digests have matched, and loading executes no code (see `reading`).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.training.checkpoints.folder import ENGINE, RECORD, Checkpoint, checkpoints_in, folder_name
from ava_core.training.checkpoints.reading import read_tensors
from ava_core.training.checkpoints.universal import SavedState, load_converted
from ava_core.training.checkpoints.writing import CopyingCheckpointEngine

log = logging.getLogger(__name__)
HYPERPARAMETERS = ("lr", "peak_lr", "initial_lr", "weight_decay", "betas", "eps", "momentum")
"""Of an optimiser's groups: the run's own, not the checkpoint's, when another run is gone on from."""


OF_WEIGHTS = ("model", "tokenizer")
"""Of a checkpoint's identity what must be equal to take its weights; the rest is about the optimiser's state."""


@dataclass(frozen=True)
class Restored:
    """State of a run that was restored from a checkpoint.

    Attributes:
        step: optimiser steps done.
        parts: states by name, as they were given to `save`.
        tokens_seen: tokens trained on.
        windows: position in the order of the windows, as it was given to `save`.
    """

    step: int
    parts: dict[str, dict]
    tokens_seen: int
    windows: dict[str, Any]


def rank_state(engine: Any, step: int, parts: dict[str, dict]) -> dict[str, Any]:
    """What a rank adds to DeepSpeed's files: its random numbers, the engine's own state and `parts`."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    own = engine.state_dict() if hasattr(engine, "state_dict") else {}
    return {"step": step, "rng": {"cpu": torch.get_rng_state(), "cuda": cuda}, "engine": own, "parts": parts}


def parameter_names(deepspeed: Any) -> list[list[str]] | None:
    """Names in the order of the optimiser's groups, without which its whole state can't be read; None under ZeRO."""
    if deepspeed.zero_optimization_stage():
        return None
    names = {id(parameter): name for name, parameter in deepspeed.module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in deepspeed.optimizer.param_groups]


def load(engine: Any, checkpoint: Checkpoint, ranks: Ranks, same_groups: bool = True) -> Restored:
    """Load a verified checkpoint, converted where its ranks, its ZeRO stage or its groups aren't the engine's.

    Args:
        engine: the training engine.
        checkpoint: verified.
        ranks: this process among those that train.
        same_groups: the optimiser's groups hold the same parameters; in a run of its own they do.

    Raises:
        AvaError: its tensors don't fit the engine's model or optimiser.
    """
    record, deepspeed = checkpoint.record, engine.deepspeed
    stage = int(deepspeed.zero_optimization_stage())
    with _in_one_line(checkpoint.folder):
        if record["zero_stage"] == stage and (record["ranks"] == ranks.size or not stage) and same_groups:
            deepspeed.checkpoint_engine = CopyingCheckpointEngine()
            with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints
                deepspeed.load_checkpoint(str(checkpoint.folder), tag=ENGINE, load_module_strict="frozen" not in record)
        else:
            load_converted(deepspeed, checkpoint)
    first = _read_rank(checkpoint.folder, 0)
    own = first if ranks.is_first or ranks.rank >= record["ranks"] else _read_rank(checkpoint.folder, ranks.rank)
    if hasattr(engine, "load_state_dict"):
        engine.load_state_dict(own["engine"])
    if ranks.rank < record["ranks"]:  # a rank that is new keeps the random numbers that it was seeded with
        torch.set_rng_state(own["rng"]["cpu"])
        if torch.cuda.is_available() and own["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(own["rng"]["cuda"])
    return Restored(record["step"], first["parts"], record["tokens_seen"], record["windows"])


def check_resume(folder: Path, identity: dict[str, Any], config: TrainConfig, ranks: Ranks) -> Checkpoint:
    """The checkpoint that `--resume FOLDER` names: itself, or the newest of those in it.

    Steps, schedule, rates, batches and the number of ranks may differ from the run that made it; with
    `train.reset_optimizer` all that the optimiser is about, too.

    Raises:
        ConfigError: it is no checkpoint, or one of something else; one line per fault.
    """
    asked = f"--resume {folder}"
    found = Checkpoint(folder, -1) if (folder / RECORD).is_file() else next(reversed(checkpoints_in(folder)), None)
    if found is None:
        raise ConfigError(
            f"{asked}: not a checkpoint: it has no {RECORD}; a finished training leaves some in"
            " WORK/train/KEY/kept/checkpoints if train.keep_best_checkpoint or train.keep_checkpoint_every is set"
        )
    needed = {name: value for name, value in identity.items() if name in OF_WEIGHTS or not config.reset_optimizer}
    others = "give its finished model with --init", "or take only the weights: --reset-optimizer"
    return _checked(found, asked, needed, others, config, ranks)


def check_kept(
    folder: Path, step: int, identity: dict[str, Any], config: TrainConfig, ranks: Ranks, asked: str
) -> Checkpoint:
    """The checkpoint of a finished training's last step, from which only the optimiser's state is wanted.

    Args:
        folder: of the checkpoints that it has kept.
        step: its last one.
        identity: as in `check_resume`; model and tokenizer are those of the finished model.
        config, ranks: of the training that begins.
        asked: what asks for it, for messages.

    Raises:
        ConfigError: it kept none of that step, or the state is of another optimiser; one line per fault.
    """
    found = Checkpoint(folder / folder_name(step), step)
    if not (found.folder / RECORD).is_file():
        raise ConfigError(
            f"{asked}: its training has left no state of its step {step} in {folder}: make it again with"
            " train.keep_last_checkpoint = true, or leave keep_optimizer out"
        )
    needed = {name: value for name, value in identity.items() if name not in OF_WEIGHTS}
    leave = "leave keep_optimizer out"
    return _checked(found, asked, needed, (leave, f"or {leave}"), config, ranks)


def _checked(
    found: Checkpoint,
    asked: str,
    needed: dict[str, Any],
    others: tuple[str, str],
    config: TrainConfig,
    ranks: Ranks,
) -> Checkpoint:
    """The same checkpoint, of the step in its record, if it can be gone on from.

    Args:
        found: what was found.
        asked: what asks for it, for messages.
        needed: what of its identity must be equal.
        others: what to do where weights are frozen, and where the optimiser is another one.
        config, ranks: of the training that begins.
    """
    try:
        record = found.record
    except IntegrityError as error:
        raise ConfigError(f"{asked}: {error}") from error
    if frozen := record.get("frozen"):
        raise ConfigError(
            f"{asked}: is of a training with {len(frozen)} frozen parameters, such as {frozen[0]}, whose"
            f" weights it doesn't hold: {others[0]}"
        )
    faults = [_fault(asked, name, record["identity"].get(name), value, others[1]) for name, value in needed.items()]
    if found_faults := [fault for fault in faults if fault]:
        raise ConfigError(*found_faults)
    if config.offload != "none" and (record["zero_stage"], record["ranks"]) != (config.zero_stage, ranks.size):
        raise ConfigError(
            f"{asked}: is of ZeRO stage {record['zero_stage']} on {record['ranks']} ranks: going on at"
            f" stage {config.zero_stage} on {ranks.size} needs train.offload = none"
        )
    return Checkpoint(found.folder, int(record["step"]))


def resume_from(engine: Any, folder: Path, identity: dict[str, Any], ranks: Ranks, config: TrainConfig) -> Restored:
    """Continue from the checkpoint in `folder`, with the rates, decays and schedule of this run.

    Raises:
        ConfigError: as `check_resume`.
        IntegrityError: a file is missing or changed; it names it.
    """
    return restore(engine, check_resume(folder, identity, config, ranks), ranks)


def restore(engine: Any, checkpoint: Checkpoint, ranks: Ranks) -> Restored:
    """Continue from a checkpoint that was found fit, with the rates, decays and schedule of this run.

    Raises:
        IntegrityError: a file is missing or changed; it names it.
    """
    verify_together(checkpoint, ranks)
    optimizer = engine.deepspeed.optimizer
    mine = [{name: group[name] for name in HYPERPARAMETERS if name in group} for group in optimizer.param_groups]
    same_groups = checkpoint.record.get("groups", engine.groups) == engine.groups
    restored = load(engine, checkpoint, ranks, same_groups)
    for group, own in zip(optimizer.param_groups, mine, strict=True):
        group.update(own)
    log.info("train: going on from %s, at step %d", checkpoint.folder, restored.step)
    return restored


def read_weights(checkpoint: Checkpoint, ranks: Ranks) -> dict[str, torch.Tensor]:
    """The exact weights and the buffers in a checkpoint, by name. Collective.

    Raises:
        IntegrityError: a file is missing or changed; it names it.
    """
    verify_together(checkpoint, ranks)
    return SavedState(checkpoint).weights()


def position_of(checkpoint: Checkpoint) -> Restored:
    """How far the training of a verified checkpoint was, and what steered it; without the optimiser."""
    record = checkpoint.record
    parts = _read_rank(checkpoint.folder, 0)["parts"]
    return Restored(record["step"], parts, record["tokens_seen"], record["windows"])


def verify_together(checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Verify the SHA-256 of all files; each rank takes a share of them. Collective.

    Raises:
        IntegrityError: on all ranks, where one of them found a file missing or changed; that one names it.
    """
    fault = None
    try:
        checkpoint.verify(ranks.rank, ranks.size)
    except IntegrityError as error:
        fault = error
    if ranks.any(fault is not None):
        raise fault or IntegrityError(f"{checkpoint.folder}: another rank found it damaged: the checkpoint is not used")


def _fault(asked: str, name: str, theirs: Any, ours: Any, only: str) -> str | None:
    """One line on what isn't equal; values that are digests say nothing to a reader."""
    if theirs == ours:
        return None
    line = f"{asked}: was trained with"
    if name == "model":
        return (
            f"{line} another model: give the model that it was trained with, or its finished model with --init, which"
            " takes other dropout, losses, noise, capacity and context"
        )
    if isinstance(ours, str) and len(ours) == 64:
        return f"{line} another {name}: give the {name} that it was trained with"
    return f"{line} {name} = {theirs}, not {ours}: set train.{name} = {theirs}, {only}"


@contextlib.contextmanager
def _in_one_line(folder: Path) -> Iterator[None]:
    """Of what torch and DeepSpeed say of tensors that don't fit, the line that names the first of them."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, AssertionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise AvaError(f"{folder}: doesn't fit this model: {' '.join(lines[:2]) or type(error).__name__}") from error


def _read_rank(folder: Path, rank: int) -> dict[str, Any]:
    return read_tensors(folder / f"rank-{rank:05d}.pt")
