"""A training's request on its way to the processes that take part: as JSON, and the function that trains it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter

from ava_core.config.schema import AvaConfig
from ava_core.config.train import TrainConfig
from ava_core.progress import Progress
from ava_core.steps.table import STEPS
from ava_core.training.request import TrainRequest, TrainResult

TrainingFunction = Callable[[TrainRequest, Progress], TrainResult]


def training_function(step: str) -> TrainingFunction:
    """The function of a step that trains. To import it takes seconds, which a process that only starts others can save.

    Args:
        step: its name in the step table.
    """
    module, _, name = STEPS[step].function.partition(":")
    return getattr(import_module(module), name)


def encode(request: TrainRequest) -> dict[str, Any]:
    """The request as JSON values."""
    return TypeAdapter(TrainRequest).dump_python(request, mode="json", by_alias=True)


def decode(values: dict[str, Any]) -> TrainRequest:
    """The request that `encode` made values of; its settings are of the class of the step's section."""
    kind: type[TrainConfig] = type(getattr(AvaConfig(), STEPS[values["step"]].training))
    settings = TypeAdapter(kind).validate_json(json.dumps(values["train_config"]))
    plain = TypeAdapter(TrainRequest).validate_json(json.dumps({**values, "train_config": {}}))
    return replace(plain, train_config=settings)
