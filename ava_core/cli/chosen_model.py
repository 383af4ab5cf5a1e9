"""The model that a command lets write: a folder, or a registered version with a choice of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ava_core.config.register import REGISTERED
from ava_core.steps.schemes import SMALLEST_FIRST

DEFAULT_MODEL = f"{REGISTERED}ava-moe@champion"
CACHE = Path(".ava/models")
FLOAT = "float"

Model = Annotated[
    str,
    typer.Option(help="Model folder, or output folder of `ava quantize`, or models:/NAME@ALIAS, models:/NAME/VERSION."),
]
Weights = Annotated[
    str,
    typer.Option(
        help=f"Weights of a registered model: {FLOAT}, {', '.join(SMALLEST_FIRST)}, or auto for the smallest quantised"
        " ones."
    ),
]
Threads = Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0: all that it may use.")]


def require_weights(model: str, weights: str) -> None:
    """Refuse weights that can't be chosen.

    Raises:
        ConfigError: unknown ones, or a choice for a folder, which holds its own.
    """
    from ava_core.errors import ConfigError

    known = (FLOAT, "auto", *SMALLEST_FIRST)
    if weights not in known:
        raise ConfigError(f"--weights {weights}: must be one of {', '.join(known)}")
    if weights != FLOAT and not model.startswith(REGISTERED):
        raise ConfigError(f"--weights {weights}: chooses among those of a registered model: {model} holds its own")


def model_folder(model: str, weights: str) -> Path:
    """The model's folder; a registered one is fetched into CACHE and verified."""
    if not model.startswith(REGISTERED):
        return Path(model)
    from ava_core.registry import download_model
    from ava_core.registry.download import TRAINED
    from ava_core.tracking import tracking_uri

    return download_model(model, tracking_uri(), CACHE, TRAINED if weights == FLOAT else weights).folder
