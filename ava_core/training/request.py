"""Request and result of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import SerializeAsAny

from ava_core.config.model import ModelConfig
from ava_core.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """What a training is made from, and where it writes."""

    model_config: ModelConfig
    """The architecture."""
    train_config: SerializeAsAny[TrainConfig]
    """How it is trained: the step's section."""
    seed: int
    """Of the weights, the batches and all noise."""
    shards: Path
    """Output of `ava preprocess`."""
    output: Path
    """An empty folder, for the model."""
    state: Path
    """A folder that outlives a killed run, for checkpoints and history."""
    threads: int
    """CPU threads of all processes of this machine together."""
    init: Path | None = None
    """A model to begin from: output of `ava train` or of what else gives models."""
    resume: Path | None = None
    """A checkpoint of another training of the same model to begin from."""
    reference: Path | None = None
    """Output of `ava train` whose losses order the curriculum."""
    teacher: Path | None = None
    """A finished model whose predictions are imitated: what `train.teacher.model` names."""
    work: Path | None = None
    """The work folder, where a teacher's predictions are kept for other trainings; None: they are in `state`."""
    code: str = ""
    """Digest of the code that trains: what other code has kept in the work folder isn't taken."""
    kept: Path | None = None
    """Where checkpoints go that outlive the training; None: none does."""
    profile: Path | None = None
    """Where the profile of `train.profile` goes; None: nothing is profiled."""
    step: str = "train"
    """Name of the step in the step table, whose function trains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a training has measured."""

    metrics: dict[str, float]
    """Figures that are the same on every run."""
    timings: dict[str, float]
    """Figures that a clock or a memory meter gave."""
