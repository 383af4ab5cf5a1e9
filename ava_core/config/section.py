"""What all sections of the configuration are made of."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

LARGEST = 2**31 - 1
"""Upper bound of counts that have no other: the libraries that get them keep many in 32 bits."""
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveNumber = Annotated[float, Field(gt=0.0, le=1e9)]
Weight = Annotated[float, Field(ge=0.0, le=1e9)]
LearningRate = Annotated[float, Field(gt=0.0, le=1e3)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
AnyText = Annotated[str, Field(min_length=1)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]
"""Without NUL, which ends names of files and all other strings in C."""
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
"""Name of an object in Kubernetes."""


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values don't change after validation."""

    watching: ClassVar[frozenset[str]] = frozenset()
    """Fields that only watch the work, and so enter no step's key."""
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
