"""The section `register`: the registry, and the gate before champion."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ava_core.config.section import PositiveNumber, Section, Text, Weight


class GateConfig(Section):
    """Bounds that a version must keep to become champion."""

    max_bits_per_byte: PositiveNumber = 2.3
    """Absolute bound on test_bits_per_byte, used while there is no champion."""
    tolerance_bits_per_byte: Weight = 0.01
    """How much worse than the present champion a version may be."""
    max_quantized_increase: Weight = 0.02
    """How many bits per byte a quantised model may lose against its float model."""


class RegisterConfig(Section):
    """The model registry."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] = "ava-moe"
    """Name of the registered model."""
    experiment: Text = "ava"
    """MLflow experiment of the run."""
    gate: GateConfig = GateConfig()
