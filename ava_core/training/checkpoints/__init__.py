"""Durable checkpoints: whole or absent, checksummed, kept by policy, written in the background, resumed bit-exactly."""

from ava_core.training.checkpoints.folder import Checkpoint, chosen
from ava_core.training.checkpoints.resuming import (
    Restored,
    check_kept,
    check_resume,
    position_of,
    read_weights,
    restore,
    resume_from,
)
from ava_core.training.checkpoints.run import CheckpointFolder

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "Restored",
    "check_kept",
    "check_resume",
    "chosen",
    "position_of",
    "read_weights",
    "restore",
    "resume_from",
]
