"""Models out of folders in the layout of Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ava_core.models.quiet import quiet

GIVE_MODEL = "give a model folder, as `ava train` or `ava import` leaves it"
"""The way out for whoever gave something else."""


def load_pretrained(model_class: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model in `folder`, float32, and Transformers' report of the weights that don't fit it.

    Nothing is fetched, nothing is unpickled, no code of the folder's is run.

    Args:
        model_class: a class with Transformers' `from_pretrained`.
        folder: config.json and weights as safetensors.

    Raises:
        Exception: Transformers, safetensors and JSON parsers raise many kinds for a damaged file.
    """
    with quiet():
        # `dtype` is given because the default would be what config.json says the weights were saved in.
        return model_class.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
