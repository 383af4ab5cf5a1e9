"""The weights that a training begins from: fresh ones, those of a finished model, or those in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ava_core.errors import IntegrityError
from ava_core.models import EnhancedMoEForSequenceClassification
from ava_core.models.weight_files import SINGLE, find_weights, opened
from ava_core.runtime import manifest
from ava_core.runtime.reading import read_object

VOCABULARY_HEAD = "lm_head."
FRESH = ("prediction_heads.", "score.")
"""Parameters that a finished model has none of: what is begun from it draws them anew."""
REMEDY = "restore the folder or run its step again"


@dataclass(frozen=True)
class Parent:
    """A finished model that a training begins from, verified by the step before it is read.

    Attributes:
        folder: where it lies.
        digest: of its contents, by which it is known everywhere.
        step, key: of the work folder's entry that it was made in.
        vocab_size: rows of its embedding, which may be more than its tokenizer has entries.
        steps: optimiser steps that it was trained for, those of its own parents not among them where they began anew.
        tokens_seen: in these steps.
    """

    folder: Path
    digest: str
    step: str
    key: str
    vocab_size: int
    steps: int
    tokens_seen: int

    @classmethod
    def read(cls, folder: Path) -> Parent:
        """What the folder says of itself.

        Raises:
            AvaError: it isn't a finished output.
            IntegrityError: a file of it can't be read.
        """
        figures = read_object(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
        made = manifest.read(folder)
        return cls(
            folder=folder,
            digest=made.digest,
            step=made.step,
            key=made.key,
            vocab_size=int(read_object(folder / "config.json")["vocab_size"]),
            # A model of another tool's making, which was imported, has none of them.
            steps=int(figures.get("steps", 0)),
            tokens_seen=int(figures.get("tokens_seen", 0)),
        )


def load_parent(model: nn.Module, parent: Parent) -> None:
    """Put the weights of a finished model into `model`, which may have prediction heads beside them.

    A classifier takes what is below the vocabulary's head, and keeps its own.

    Raises:
        IntegrityError: a weight is missing, left over, or of another shape; a file can't be read.
    """
    weights = dict(_tensors(parent.folder))
    if isinstance(model, EnhancedMoEForSequenceClassification):
        weights = {name: value for name, value in weights.items() if not name.startswith(VOCABULARY_HEAD)}
    fill(model, weights, str(parent.folder / SINGLE))


@torch.no_grad()
def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into the parameters and buffers of their names; tied ones need to be there once.

    A buffer that isn't there keeps its value, and so do prediction heads, which a finished model has none of.

    Raises:
        IntegrityError: a parameter's weight is missing, left over, or of another shape.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    if strange := sorted(weights.keys() - tensors.keys()):
        raise IntegrityError(f"{source}: {strange[0]}: the model has no such weight: {REMEDY}")
    filled = set()
    for name, value in weights.items():
        if value.shape != tensors[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(tensors[name].shape)}"
            raise IntegrityError(f"{source}: {name}: has the shape {shapes} as the configuration says: {REMEDY}")
        tensors[name].copy_(value)
        filled.add(id(tensors[name]))
    for name, parameter in model.named_parameters():
        if id(parameter) not in filled and not name.startswith(FRESH):
            raise IntegrityError(f"{source}: lacks the weight {name}: {REMEDY}")


def same_weights(parent: Parent, weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights of a finished model that have one of these names have its bits too."""
    return all(value.float().equal(weights[name].cpu()) for name, value in _tensors(parent.folder) if name in weights)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight, one file mapped at a time."""
    found = find_weights(folder, REMEDY)
    if found is None:
        raise IntegrityError(f"{folder / SINGLE}: no such file: {REMEDY}")
    for path in found[0]:
        with opened(path, REMEDY) as file:
            for key in file.keys():  # noqa: SIM118  no dictionary
                yield key, file.get_tensor(key)
