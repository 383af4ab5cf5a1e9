"""Training an adapter (`train.adapter`): its updates go into the model that is begun from, and are kept at the end."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from ava_core.adapters.folder import FOLDER, write_adapter
from ava_core.adapters.layers import add_adapter, is_update, merge_adapter, peft_config
from ava_core.config.adapter import AdapterConfig
from ava_core.config.model import OF_TRAINING, ModelConfig
from ava_core.errors import AvaError, ConfigError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.initial import Parent

log = logging.getLogger(__name__)


def require_same_model(parent: Parent, config: ModelConfig, vocab_size: int) -> None:
    """Refuse what an adapter can't carry: all that the trained model is, beside its updates, must be the parent.

    Args:
        parent: the model that is begun from.
        config: the section `model` of the training.
        vocab_size: entries of the tokenizer that the training's text was encoded with.

    Raises:
        ConfigError: one line per fault.
    """
    faults = []
    if vocab_size > parent.vocab_size:
        faults.append(
            f"train.adapter: the tokenizer has {vocab_size} entries, the model of train.init {parent.vocab_size} rows:"
            " an adapter has no rows of the embedding: train without it, or with the model's own tokenizer"
        )
    before = EnhancedMoEConfig.from_json_file(parent.folder / "config.json")
    now = EnhancedMoEConfig(**config.model_dump())
    for name in ModelConfig.model_fields.keys() - OF_TRAINING:
        if (ours := getattr(now, name, None)) != (theirs := getattr(before, name, None)):
            faults.append(
                f"model.{name} = {ours}: the model of train.init has {theirs}, and an adapter carries only updates of"
                " its weights: leave it out, or train without train.adapter"
            )
    if now.router == "expert_bias" and now.expert_bias_update_rate:
        faults.append(
            f"model.expert_bias_update_rate = {now.expert_bias_update_rate}: the routers' biases are no part of an"
            " adapter: set it to 0"
        )
    if faults:
        raise ConfigError(*sorted(faults))


def add_updates(model: EnhancedMoEForCausalLM, adapter: AdapterConfig) -> None:
    """Put the updates into `model`; its own parameters are frozen from then on.

    Raises:
        ConfigError: the model has none of what is to be updated.
    """
    if "shared" in adapter.targets and not model.config.num_shared_experts and len(adapter.targets) == 1:
        raise ConfigError("train.adapter.targets = ['shared']: the model has no shared experts: name other targets")
    try:
        add_adapter(model, peft_config(adapter))
    except AvaError as error:
        raise ConfigError(f"train.adapter: {error}") from error
    whole = parameters_without_updates(model)
    updates = sum(parameter.numel() for parameter in model.parameters()) - whole
    log.info("train: an adapter of %s parameters, %.2f%% of the model's", f"{updates:,}", 100 * updates / whole)


def parameters_without_updates(model: nn.Module) -> int:
    """Entries of a model's own parameters."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not is_update(name))


def keep_updates(model: EnhancedMoEForCausalLM, adapter: AdapterConfig, base: str, output: Path) -> None:
    """Write the updates in `model` below `output`, and merge them into its weights.

    Args:
        model: a finished one, float32.
        adapter: by which the updates were put there.
        base: digest of the model that was begun from.
        output: the model's folder.
    """
    write_adapter(output / FOLDER, model, adapter, base)
    merge_adapter(model)
