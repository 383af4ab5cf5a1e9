"""What config.json of a source describes, as a configuration of ours; what ours lacks is refused by name."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.errors import AvaError, ConfigError, IntegrityError, first_line
from ava_core.importing.source import CONFIG, read_object
from ava_core.models import EnhancedMoEConfig
from ava_core.models.conversion import SOURCES, Upcycling, config_from_transformers, upcycled_config

log = logging.getLogger(__name__)
OURS = EnhancedMoEConfig.model_type


@dataclass(frozen=True)
class Architecture:
    """Attributes:
    name: `model_type` of the source.
    before: the source as a configuration of ours.
    config: what it becomes: the same, or what upcycling makes of it.
    upcycling: how; None where nothing is upcycled.
    changes: what that means, in words.
    """

    name: str
    before: EnhancedMoEConfig
    config: EnhancedMoEConfig
    upcycling: Upcycling | None
    changes: tuple[str, ...]


def read_architecture(folder: Path, upcycling: Upcycling | None) -> Architecture:
    """Read config.json, and decide whether our model computes the same.

    Raises:
        ConfigError: the numbers of the upcycling don't fit, or a dense model comes without them.
        AvaError: it is another architecture, or has something that ours lacks.
        IntegrityError: it can't be read.
    """
    path = folder / CONFIG
    fields = read_object(path)
    name = str(fields.get("model_type"))
    _require_known(path, name, fields)
    before = _understand(path, name, fields)
    dense = before.num_experts == 1
    if upcycling is not None and not dense:
        raise ConfigError(
            f"--experts {upcycling.experts}: {folder} has {before.num_experts} experts per layer: only a dense model"
            " is upcycled: leave it out"
        )
    if upcycling is None and dense and name != OURS:
        raise ConfigError(
            f"{folder}: {name} is dense: give --experts, how many experts each layer gets (1: it stays dense)"
        )
    if upcycling is None or upcycling.experts == 1:
        return Architecture(name, before, copy.deepcopy(before), None, tuple(_renamed(name, dense)))
    try:
        config = upcycled_config(before, upcycling)
    except ValueError as error:
        option, _, fault = str(error).partition(" = ")
        raise ConfigError(f"--{option.replace('_', '-')} {fault}") from error
    return Architecture(name, before, config, upcycling, (_describe(name, upcycling),))


def _renamed(name: str, dense: bool) -> Iterator[str]:
    if name != OURS:
        yield f"{name} as {OURS}: parameters renamed, experts stacked"
    if dense and name != OURS:
        yield "each feed-forward network is the one expert of its layer"


def _require_known(path: Path, name: str, fields: dict[str, Any]) -> None:
    code = fields.get("auto_map")
    if name not in {OURS, *SOURCES}:
        own = "; it asks for code of its own to be run (auto_map), which never happens" if code else ""
        raise AvaError(f"{path}: model_type = {name!r}: must be one of {', '.join((*SOURCES, OURS))}{own}")
    if code:
        log.info("%s: auto_map asks for code of its own to be run: it isn't, %s is known without", path, name)
    if fields.get("quantization_config"):
        raise AvaError(f"{path}: quantization_config: the weights are quantised: give the model that they were made of")
    kinds = fields.get("architectures") or []
    if any(not str(kind).endswith("ForCausalLM") for kind in kinds):
        raise AvaError(f"{path}: architectures = {kinds}: must be a causal language model, ...ForCausalLM")


def _understand(path: Path, name: str, fields: dict[str, Any]) -> EnhancedMoEConfig:
    wanted = {key: value for key, value in fields.items() if key != "auto_map"}
    config_class: Any = EnhancedMoEConfig if name == OURS else SOURCES[name].config_class
    try:
        described = config_class.from_dict(wanted)
    except Exception as error:  # what a configuration refuses has many types
        raise IntegrityError(f"{path}: can't be understood ({first_line(error)}): fetch it again") from error
    # Written by tools that have no token for it, such as -1.
    for field in ("bos_token_id", "pad_token_id"):
        token = getattr(described, field)
        if isinstance(token, int) and not 0 <= token < described.vocab_size:
            setattr(described, field, None)
    try:
        return described if name == OURS else config_from_transformers(described)
    except ValueError as error:
        raise AvaError(f"{path}: {first_line(error)}") from error


def _describe(name: str, upcycling: Upcycling) -> str:
    parts = [f"{name} upcycled (arXiv 2212.05055): {upcycling.experts} experts per layer"]
    if upcycling.granularity > 1:
        parts.append(
            f"{upcycling.experts // upcycling.granularity} copies of its feed-forward network cut into"
            f" {upcycling.granularity} each"
        )
    else:
        parts.append("copies of its feed-forward network")
    parts.append(f"with noise of {upcycling.noise:g} of their deviation" if upcycling.noise else "without noise")
    parts.append(f"{upcycling.experts_per_token} per token, router fresh (seed {upcycling.seed})")
    return ", ".join(parts)
