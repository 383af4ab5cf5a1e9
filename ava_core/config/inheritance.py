"""The section `model` of a training that begins from a model (`train.init`): the parent's, where the user set nothing.

What a preset says of the model gives way. What the user says must not contradict the parent, but for `CHANGEABLE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ava_core.config.context import scaling_of
from ava_core.config.model import OF_TRAINING, ModelConfig
from ava_core.config.register import REGISTERED
from ava_core.config.routing import ROUTERS
from ava_core.errors import AvaError, shorten
from ava_core.files import parse_json

CHANGEABLE = OF_TRAINING | {
    # How many experts a token gets, and the context with what reaches it: neither is in the shape of a weight, and
    # both are what a training goes on for.
    "num_experts_per_token",
    "max_experts_per_token",
    "confidence_threshold",
    "num_groups_per_token",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "sliding_window",
    "layer_types",
}
"""Fields of `model` that may differ from the parent's. All others decide the weights, or what is computed of them."""
CONFIG = "config.json"
MODEL_TYPE = "ava_moe"


def read_architecture(folder: Path) -> dict[str, Any]:
    """The section `model` that the model in `folder` has.

    Raises:
        AvaError: it has no config.json, or one that isn't of a model of ours.
    """
    path = folder / CONFIG
    try:
        values = parse_json(path.read_bytes())
    except OSError as error:
        raise AvaError(f"{path}: can't be read ({error.strerror or error}): give a model folder") from error
    except ValueError as error:
        raise AvaError(f"{path}: can't be read ({error}): restore the folder or run its step again") from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind != MODEL_TYPE:
        raise AvaError(f"{path}: model_type = {kind}: is no model of Ava's: `ava import` makes one of it")
    found = {name: values[name] for name in ModelConfig.model_fields if name in values}
    if found.get("router") in ROUTERS and found.get("max_experts_per_token") is None:  # every expert
        counts = ("num_ffn_experts", "num_zero_experts", "num_copy_experts", "num_constant_experts")
        found["max_experts_per_token"] = sum(int(found.get(name) or 0) for name in counts)
    if scaling := scaling_of(values.get("rope_parameters")):
        found["rope_scaling"] = scaling
    if isinstance(found.get("qk_norm"), bool):
        found["qk_norm"] = "head" if found["qk_norm"] else "none"
    return found


def find_architecture(name: str) -> dict[str, Any] | None:
    """The same of what `train.init` names, where it is a folder that can be read here; steps that only read the same
    file of parameters needn't have the parent."""
    if name.startswith(REGISTERED):
        return None
    try:
        return read_architecture(Path(name))
    except AvaError:
        return None


def contradictions(name: str, parent: Mapping[str, Any], layer: str, given: Any) -> Iterator[str]:
    """A line for each field of `model` that the user set to something else than the parent has.

    Args:
        name: value of `train.init`.
        parent: the parent's section `model`.
        layer: where the user's values come from.
        given: that layer's section `model`.
    """
    for field, value in given.items() if isinstance(given, Mapping) else ():
        if field in parent and field not in CHANGEABLE and value != parent[field]:
            yield (
                f"{layer}: model.{field} = {shorten(str(value))}: the model of train.init = {shorten(name)} has"
                f" {parent[field]}: leave it out, or train without train.init"
            )
