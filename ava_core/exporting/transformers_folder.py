"""A trained model as a folder of another architecture of Transformers, which other tools know."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from ava_core.data.tokenizer import copy_tokenizer
from ava_core.errors import AvaError
from ava_core.generation.loading import load_model
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.conversion import to_transformers
from ava_core.models.pretrained import GIVE_MODEL
from ava_core.models.quiet import quiet
from ava_core.runtime.atomic_copy import copy_atomically
from ava_core.runtime.manifest import verified

log = logging.getLogger(__name__)
TRAINING_ONLY = {
    "router_z_loss_weight": 0.0,
    "router_diversity_weight": 0.0,
    "router_jitter": 0.0,
    "capacity_factor": None,
    "dropout": 0.0,
}
"""Fields that change no logits in evaluation, and what switches them off; the other architectures lack them."""


def export_model(folder: Path, target: str, output: Path, *, tied: bool = True) -> None:
    """Write the model in `folder` as OLMoE, Mixtral or Qwen3-MoE, with its tokenizer: float32 safetensors.

    Args:
        folder: a model folder.
        target: olmoe, mixtral or qwen3_moe.
        output: appears whole or not at all.
        tied: False writes the output projection as a matrix of its own also where the model shares the embeddings.

    Raises:
        AvaError: the folder holds no trained model, `output` exists, or the target lacks something that the model has.
        IntegrityError: a file can't be read.
    """
    if output.exists():
        raise AvaError(f"{output}: exists: give another --output, or remove it")
    with tempfile.TemporaryDirectory(prefix="ava-export-") as name:
        partial = Path(name, "model")
        with verified(folder):
            exported = _exported(folder, target, tied)
            if not torch.cuda.is_available():
                # `save_pretrained` imports DeepSpeed by way of Accelerate, which else prints that it found no GPU.
                os.environ.setdefault("DS_ACCELERATOR", "cpu")
            with quiet():
                exported.save_pretrained(partial)
            copy_tokenizer(folder, partial, exported.config.max_position_embeddings)
        copy_atomically(partial, output, {})


def _exported(folder: Path, target: str, tied: bool) -> PreTrainedModel:
    model, _ = load_model(folder)
    if not isinstance(model, EnhancedMoEForCausalLM):
        raise AvaError(f"{folder}: holds a {type(model).__name__}: {GIVE_MODEL}")
    for field, off in TRAINING_ONLY.items():
        if getattr(model.config, field) != off:
            log.info("export: %s = %s left out: it matters in training only", field, getattr(model.config, field))
            setattr(model.config, field, off)
    try:
        exported = to_transformers(model, target)
    except ValueError as error:
        raise AvaError(f"{folder}: {error}") from error
    if not tied:
        _untie(exported)
    return exported


def _untie(model: PreTrainedModel) -> None:
    model.config.tie_word_embeddings = False
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, nn.Linear) and isinstance(embeddings, nn.Embedding)
    head.weight = nn.Parameter(embeddings.weight.detach().clone())
