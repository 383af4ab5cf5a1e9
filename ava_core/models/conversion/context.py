"""Scaled positions and sliding windows in the words of both sides."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ava_core.config.context import DYNAMIC, FULL, LINEAR, SLIDING, YARN
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.conversion.peers import Peer
from ava_core.models.conversion.rules import Rule

_KINDS = ("default", LINEAR, DYNAMIC, YARN)
_READ = {
    LINEAR: ("factor",),
    DYNAMIC: ("factor",),
    YARN: ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"),
}
"""What Transformers reads of a kind's parameters; it passes over others, some of which published models have."""


def context_from(config: PreTrainedConfig) -> dict[str, Any]:
    """`rope_parameters` and, where "dynamic" gives it another meaning, `max_position_embeddings` of our configuration.

    Raises:
        ValueError: positions are scaled in a way that ours lacks.
    """
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind not in _KINDS:
        raise ValueError(f"rope_parameters.rope_type = {kind!r}: must be one of {', '.join(_KINDS)} for Ava")
    if (share := rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError(f"rope_parameters.partial_rotary_factor = {share}: must be 1 for Ava: heads rotate as a whole")
    if kind == "default" or (rope.get("factor") == 1 and rope.get("attention_factor") is None):
        return {"rope_parameters": {"rope_type": "default", "rope_theta": rope["rope_theta"]}}
    found = {"rope_type": kind, "rope_theta": rope["rope_theta"]}
    found |= {name: rope[name] for name in _READ[kind] if rope.get(name) is not None}
    if kind == YARN and rope.get("mscale") and rope.get("mscale_all_dim"):  # DeepSeek's way to say it
        found["attention_factor"] = float(ROPE_INIT_FUNCTIONS[YARN](config)[1])
    if kind != DYNAMIC:
        return {"rope_parameters": found}
    # Theirs is the context that it was trained with, and grows without an end; ours ends where the factor does.
    original = config.max_position_embeddings
    found["original_max_position_embeddings"] = original
    return {"rope_parameters": found, "max_position_embeddings": int(original * float(rope["factor"]))}


def context_to(config: EnhancedMoEConfig) -> dict[str, Any]:
    """The same for a configuration of Transformers."""
    rope = dict(config.rope_parameters)
    if rope["rope_type"] == YARN:
        return {"rope_parameters": rope}
    original = rope.pop("original_max_position_embeddings", None)
    if rope["rope_type"] == DYNAMIC:
        return {"rope_parameters": rope, "max_position_embeddings": original}
    return {"rope_parameters": rope}


def window_from(config: PreTrainedConfig, peer: Peer) -> dict[str, Any]:
    """`sliding_window` and `layer_types` of our configuration; neither, where the window holds the whole context.

    Raises:
        ValueError: there are layers of another kind, or a window in a model that has none.
    """
    window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window is not None and not peer.slides:
        raise ValueError(f"sliding_window = {window!r}: must be None for Ava: {peer.name} passes over it")
    allowed = {FULL, SLIDING} if window is not None else {FULL}
    if not set(types or ()) <= allowed:
        names = " or ".join(sorted(allowed))
        raise ValueError(
            f"layer_types = {types!r}: must be {names} for every layer for Ava, as sliding_window is {window}"
        )
    if window is None or window >= config.max_position_embeddings or (types and SLIDING not in types):
        return {}
    return {"sliding_window": window, "layer_types": types}


def slides_like(peer: Peer) -> Rule:
    """What a window of ours must be to be one of the peer's."""
    if not peer.slides:
        return Rule("sliding_window", lambda value: value is None, "None", "its attention has no window")
    every = f"{SLIDING} for every layer"
    return Rule(
        "layer_types", lambda value: set(value) == {SLIDING}, every, "its layers all have the window or none has"
    )
