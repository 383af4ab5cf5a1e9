"""Parameters by patterns of their names: which are frozen, and what their learning rates are multiplied with.

A pattern is one of shell names (`fnmatch`), held against the whole name, which may be written without the `model.` that
it begins with: `embed*`, `layers.0.*`, `*.moe.gate.*`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from ava_core.config.parameters import Parameter
from ava_core.config.train import TrainConfig
from ava_core.errors import ConfigError

_PREFIX = "model."
HEADS = "prediction_heads."
"""Prefix of the parameters that only the training has, of which the configuration alone knows no names."""


def is_named(name: str, pattern: str) -> bool:
    """Whether a pattern means the parameter of this name."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.removeprefix(_PREFIX), pattern)


def frozen_names(names: Collection[str], patterns: Sequence[str]) -> set[str]:
    """Those of the parameters that `train.freeze` means.

    Raises:
        ConfigError: a pattern means no parameter, or all of them are frozen; one line per fault.
    """
    require_meaning("freeze", patterns, names)
    frozen = {name for name in names if any(is_named(name, pattern) for pattern in patterns)}
    if frozen and len(frozen) == len(names):
        shown = ", ".join(patterns)
        raise ConfigError(f"train.freeze = [{shown}]: freezes every parameter: leave some to be trained")
    return frozen


def require_meaning(key: str, patterns: Iterable[str], names: Collection[str]) -> None:
    """Refuse patterns of `train.KEY` that mean no parameter, with names that are near.

    Raises:
        ConfigError: one line per pattern.
    """
    faults = []
    for pattern in patterns:
        if not any(is_named(name, pattern) for name in names):
            faults.append(f"train.{key}: {pattern}: matches no parameter: {_near(pattern, names)}")
    if faults:
        raise ConfigError(*faults)


def _near(pattern: str, names: Collection[str]) -> str:
    shown = {name.removeprefix(_PREFIX): None for name in names}
    layers = [number for name in names if (number := layer_of(name)) is not None]
    if layers and (asked := re.match(r"(?:model\.)?layers\.(\d+)\.", pattern)) and int(asked[1]) > max(layers):
        return f"there are layers 0 to {max(layers)}"
    if "lm_head" in pattern and "lm_head.weight" not in shown:
        return "the head is the embedding (model.tie_word_embeddings): embed_tokens.weight"
    close = difflib.get_close_matches(pattern, shown, n=3, cutoff=0.3)
    return f"near are {', '.join(close)}" if close else f"there are {', '.join(list(shown)[:3])} and others"


def known_beforehand(patterns: Iterable[str]) -> list[str]:
    """The patterns of parameters that the configuration names: not those of heads that only the training has."""
    return [pattern for pattern in patterns if not pattern.startswith(HEADS)]


def divide(parameters: Iterable[Parameter], patterns: Sequence[str]) -> tuple[list[Parameter], list[Parameter]]:
    """The parameters that are trained, and those that are frozen: of one name and shape some layers may be either.

    Raises:
        ConfigError: as `frozen_names`.
    """
    parameters = list(parameters)
    if not patterns:
        return parameters, []
    names = [name for parameter in parameters for name in parameter.names]
    frozen = frozen_names(names, known_beforehand(patterns))
    trained, held = [], []
    for parameter in parameters:
        count = sum(name in frozen for name in parameter.names)
        if count < parameter.copies:
            trained.append(replace(parameter, copies=parameter.copies - count))
        if count:
            held.append(replace(parameter, copies=count))
    return trained, held


def layer_of(name: str) -> int | None:
    """Number of the decoder layer that a parameter is in, from 0; None for the embedding, the last norm and heads."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def rate_multiple(name: str, num_layers: int, config: TrainConfig) -> float:
    """What a parameter's learning rate is multiplied with, by its layer and by the groups of the configuration.

    Layer-wise decay (ELECTRA, arXiv 2003.10555, appendix A; numbered as BEiT, arXiv 2106.08254, has it): decay^(L - l)
    in layer l of L from 0, decay^(L + 1) for the embedding, 1 after the layers. Of the groups the first whose pattern
    means the parameter counts.
    """
    multiple = 1.0
    if config.learning_rate_decay_by_layer != 1.0:
        layer = layer_of(name)
        depth = layer + 1 if layer is not None else 0 if "embed_tokens" in name.split(".") else num_layers + 1
        multiple = config.learning_rate_decay_by_layer ** (num_layers + 1 - depth)
    group = next((group for group in config.learning_rate_groups if is_named(name, group.pattern)), None)
    return multiple * group.multiplier if group else multiple
