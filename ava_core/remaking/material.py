"""A finished model that another one is made of, read tensor by tensor; and the folder of what is made of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from ava_core.config.inheritance import read_architecture
from ava_core.config.model import ModelConfig
from ava_core.config.parameters import active_count
from ava_core.data.tokenizer import copy_tokenizer
from ava_core.files import write_json
from ava_core.importing.weights import SINGLE, Checkpoint
from ava_core.importing.writing import write_tensors
from ava_core.models import EnhancedMoEConfig
from ava_core.models.conversion.recipes import Shape
from ava_core.origin import licence_texts, read_origin, write_origin
from ava_core.runtime import manifest
from ava_core.runtime.reading import read_object

PARENTS = ("init", "model", "models")
"""Inputs by which a manifest names models that another one has its weights from."""
CONFIG, GENERATION, TRAINING = "config.json", "generation_config.json", "training.json"


@dataclass(frozen=True)
class Material:
    """A finished model, verified by the tool before it is read.

    Attributes:
        folder: where it lies.
        digest: of its contents.
        architecture: the section `model` that it has.
        config: the same as the model knows it, with the tokens that config.json names.
        checkpoint: its weights.
        training: what training.json says.
    """

    folder: Path
    digest: str
    architecture: ModelConfig
    config: EnhancedMoEConfig
    checkpoint: Checkpoint
    training: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Material:
        """What the folder holds; of the weights only the headers.

        Raises:
            AvaError: it isn't a model of ours.
            IntegrityError: a file of it can't be read.
        """
        architecture = ModelConfig(**read_architecture(folder))
        return cls(
            folder=folder,
            digest=manifest.read(folder).digest,
            architecture=architecture,
            config=EnhancedMoEConfig.from_dict(read_object(folder / CONFIG)),
            checkpoint=Checkpoint(folder),
            training=read_object(folder / TRAINING),
        )

    @property
    def ancestors(self) -> set[str]:
        """Digests of the models that it was made of, and its own, as far as its manifest tells."""
        inputs = manifest.read(self.folder).inputs
        return {self.digest, *(digest for name, digest in inputs.items() if name.partition(".")[0] in PARENTS)}


def write_model(
    material: Material,
    output: Path,
    config: EnhancedMoEConfig,
    shapes: Mapping[str, Shape],
    dtype: str,
    rows: Callable[[str], Iterable[Tensor]],
    changes: Iterable[str],
) -> dict[str, float]:
    """Fill the empty folder `output` with a model that every step takes; its figures.

    Args:
        material: gives the tokenizer, the training context, where it comes from and its licence.
        output: the folder.
        config: of the new model.
        shapes: of its tensors.
        dtype: float32 or bfloat16.
        rows: a tensor's rows, in consecutive parts of its first axis.
        changes: what was done to the material, for origin.json, in words.
    """
    write_tensors(output / SINGLE, shapes, dtype, rows)
    config.dtype = dtype
    config.save_pretrained(output)
    if (material.folder / GENERATION).is_file():
        shutil.copyfile(material.folder / GENERATION, output / GENERATION)
    copy_tokenizer(material.folder, output, config.max_position_embeddings)
    for path in licence_texts(material.folder):
        shutil.copyfile(path, output / path.name)
    origin = read_origin(material.folder)
    if origin is not None:
        write_origin(output, replace(origin, changes=(*origin.changes, *changes)))
    architecture = ModelConfig(**read_architecture(output))
    total = sum(prod(shape) for name, shape in shapes.items() if not name.endswith(".expert_bias"))
    figures: dict[str, float] = {
        "parameters": total,
        "active_parameters": active_count(architecture, config.vocab_size),
    }
    # Of how it was trained the context stays true, and the text that it knows.
    kept = {name: material.training[name] for name in ("sequence_length", "corpus") if name in material.training}
    write_json(output / TRAINING, {**kept, **figures})
    return figures
