"""The arguments of `train()` as JSON, for processes that are told what to do by another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ava_core.config.model import ModelConfig
from ava_core.config.section import Section
from ava_core.config.train import TrainConfig
from ava_core.runtime.progress import Progress

SECTIONS: dict[str, type[Section]] = {"model_config": ModelConfig, "train_config": TrainConfig}
PATHS = ("shards", "output", "state", "resume", "reference", "kept")


def encode(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `train()` as JSON values; what shows progress is left to each process."""
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in SECTIONS:
            values[name] = value.model_dump(mode="json", by_alias=True)
        elif name in PATHS and value is not None:
            values[name] = str(value)
        elif name != "progress":
            values[name] = value
    return values


def decode(values: Mapping[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Keyword arguments for `train()` from what `encode` gave."""
    arguments: dict[str, Any] = {"progress": Progress(quiet=quiet)}
    for name, value in values.items():
        if name in SECTIONS:
            arguments[name] = SECTIONS[name].model_validate_json(json.dumps(value))
        elif name in PATHS and value is not None:
            arguments[name] = Path(value)
        else:
            arguments[name] = value
    return arguments
