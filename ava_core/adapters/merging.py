"""The work of `ava merge`: a model folder of a base and an adapter, whose folders stay as they are."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ava_core.adapters.folder import Adapter, read_adapter
from ava_core.adapters.layers import merge_adapter
from ava_core.config.inheritance import read_architecture
from ava_core.config.model import ModelConfig
from ava_core.config.parameters import active_count
from ava_core.data.tokenizer import copy_tokenizer
from ava_core.files import write_json
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.origin import carry_origin
from ava_core.quantization.original import load_original
from ava_core.runtime import manifest
from ava_core.runtime.inputs import Inputs
from ava_core.runtime.reading import read_object

TRAINING, GENERATION = "training.json", "generation_config.json"


@dataclass(frozen=True)
class Merge:
    """One merge; base and adapter were looked at when it is made, and belong together.

    Attributes:
        base: the folder of the model that the adapter was trained on.
        adapter: the adapter.
        origin: the base's manifest.
    """

    base: Path
    adapter: Adapter
    origin: manifest.Manifest

    @classmethod
    def of(cls, base: Path, adapter: Path, *producers: str) -> Merge:
        """Look at both.

        Args:
            base: a model folder.
            adapter: an adapter's folder, or a model folder that `ava train` left with one.
            producers: names of the steps and tools that may have made the base.

        Raises:
            AvaError: the adapter is of another base, or one of them isn't there.
            IntegrityError: a file is damaged.
        """
        origin = manifest.verify(base, *producers)
        found = read_adapter(adapter)
        found.require_base(base, origin.digest)
        return cls(base, found, origin)

    @property
    def inputs(self) -> Inputs:
        """Digests by the names of the manifest: the model begins from its base, as that of `ava train --init` does."""
        return Inputs({"init": self.origin.digest, "adapter": self.adapter.digest}, {"init": self.origin.sha256})

    def write(self, output: Path) -> dict[str, float]:
        """Fill the empty folder `output`; figures of the model.

        Raises:
            AvaError: the adapter doesn't fit, or base or adapter were changed meanwhile.
            IntegrityError: a file is damaged.
        """
        original = load_original(self.base)
        model = merged(original.model, self.adapter)
        model.save_pretrained(output, max_shard_size="2GB")
        copy_tokenizer(self.base, output, model.config.max_position_embeddings)
        if (self.base / GENERATION).is_file():
            shutil.copyfile(self.base / GENERATION, output / GENERATION)
        carry_origin(self.base, output)
        record = read_object(self.base / TRAINING)
        settings = self.adapter.settings
        record |= {
            "parent": {"model": self.origin.digest},
            "adapter": {"digest": self.adapter.digest, "rank": settings.r, "alpha": settings.lora_alpha},
        }
        write_json(output / TRAINING, record)
        architecture = ModelConfig(**read_architecture(output))
        return {
            "parameters": original.num_parameters,
            "active_parameters": active_count(architecture, model.config.vocab_size),
        }


def merged(model: EnhancedMoEForCausalLM, adapter: Adapter) -> EnhancedMoEForCausalLM:
    """`model`, which is the adapter's base in float32, with the updates added to its weights.

    Raises:
        AvaError: the adapter doesn't fit.
        IntegrityError: its weights can't be read.
    """
    adapter.put_into(model)
    merge_adapter(model)
    return model.eval()
