"""The section `register`: the registry, and the gate before champion."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from ava_core.config.gate import BoundConfig, BoundName, with_defaults
from ava_core.config.section import Section, Text

REGISTERED = "models:/"
"""Beginning of a registered model's address: models:/NAME@ALIAS, models:/NAME/VERSION."""


class RegisterConfig(Section):
    """The model registry."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] = "ava-moe"
    """Name of the registered model."""
    experiment: Text = "ava"
    """MLflow experiment of the run."""
    gate: Annotated[dict[BoundName, BoundConfig], BeforeValidator(with_defaults), Field(validate_default=True)] = {}
    """Bounds that a version must keep to become champion, by name, over those that there are by default."""
