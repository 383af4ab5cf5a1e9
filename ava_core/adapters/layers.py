"""Low-rank updates in a model of ours: put in for a training, taken out by name, merged into the weights.

PEFT does the work. It replaces each linear layer that gets an update by one around it. Gates and stacks of experts are
no layers of PEFT's kinds: for each pass it puts the sum of weight and update in the weight's place
(`target_parameters`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ava_core.config.adapter import AdapterConfig
from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEForCausalLM

if TYPE_CHECKING:
    from peft import LoraConfig

NAME = "default"
"""Of the one adapter that a model holds."""
PREFIX = "base_model.model."
"""What PEFT's files put before the names of the model."""


def peft_config(adapter: AdapterConfig) -> LoraConfig:
    """What PEFT is told, in its own words."""
    names = "|".join(name.replace(".", r"\.") for name in adapter.modules())
    return import_peft().LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # PEFT divides whatever number it is
        lora_dropout=adapter.dropout,
        use_dora=adapter.kind == "dora",
        # A pattern and not a list, of which PEFT makes a set, whose order changes from run to run.
        target_modules=rf".*\.(?:{names})" if names else [],
        target_parameters=list(adapter.parameters()) or None,
    )


def add_adapter(model: EnhancedMoEForCausalLM, config: LoraConfig) -> None:
    """Put updates into a model, which at first change nothing; they alone are trained from then on.

    Takes random numbers from torch's generator.

    Raises:
        AvaError: the model has none of what is to be updated, or PEFT can't do it.
    """
    try:
        import_peft().inject_adapter_in_model(config, model, adapter_name=NAME)
    except ValueError as error:
        raise AvaError(f"the adapter doesn't fit the model: {' '.join(str(error).split())}") from error


def adapter_names(model: nn.Module) -> set[str]:
    """Names of the parameters that a model's updates consist of; empty without an adapter."""
    return {name for name, _ in model.named_parameters() if is_update(name)}


def is_update(name: str) -> bool:
    """Whether a parameter of this name is part of an adapter."""
    return any(part.startswith("lora_") for part in name.split("."))


def adapter_state(model: EnhancedMoEForCausalLM) -> dict[str, Tensor]:
    """The updates by their names in PEFT's files."""
    state = import_peft().get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    return {PREFIX + name: value.contiguous() for name, value in state.items()}


def load_adapter_state(model: EnhancedMoEForCausalLM, state: Mapping[str, Tensor]) -> None:
    """Fill the updates of a model with those of a file.

    Raises:
        AvaError: one is missing, left over, not finite, or of another shape.
    """
    peft = import_peft()
    given = {name.removeprefix(PREFIX): value for name, value in state.items()}
    wanted = peft.get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    for name in sorted(given.keys() ^ wanted.keys()):
        raise AvaError(f"{name}: {'the model has no such update' if name in given else 'is missing'}")
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise AvaError(f"{name}: has the shape {tuple(value.shape)}, the model's is {tuple(wanted[name].shape)}")
        if not value.isfinite().all():
            raise AvaError(f"{name}: holds nan or infinity")
    peft.set_peft_model_state_dict(model, dict(given), adapter_name=NAME)


@torch.no_grad()
def merge_adapter(model: EnhancedMoEForCausalLM) -> None:
    """Add the updates to the weights and take PEFT's layers out again: a model as it was before there was an adapter.

    Where nothing was trained the weights keep their bits.

    Raises:
        AvaError: a sum isn't finite.
    """
    import_peft()
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise AvaError(f"{name}: the weight with its update is no finite number") from error
    outer: list[str] = []
    for name, layer in layers:
        if outer and name.startswith(f"{outer[-1]}."):  # one wrapper around another, of the same module
            continue
        outer.append(name)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
    model.requires_grad_(True)
    del model.peft_config


def settings_of(config: LoraConfig) -> dict[str, Any]:
    """What adapter_config.json says, the same on every run."""
    values = config.to_dict()
    values.pop("runtime_config", None)
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in values.items()
    }


def import_peft() -> ModuleType:
    """PEFT, late and in silence: where bitsandbytes is installed it imports that, which tells of a kernel for another
    purpose that it hasn't got.
    """
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import peft

        return peft
    finally:
        logger.setLevel(level)
