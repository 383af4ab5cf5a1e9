"""The section `evaluate`: measurements."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ava_core.config.generation import GenerationConfig
from ava_core.config.section import AnyText, Positive, Section
from ava_core.config.tasks import TaskList


class EvaluateConfig(Section):
    """Measurements on the test split, and the report."""

    batch_size: Positive = 16
    """Windows of train.sequence_length tokens in one forward pass."""
    prompts: Annotated[list[AnyText], Field(min_length=1)] = ["To be, or", "ROMEO\nO, she doth", "Enter the KING"]
    """Texts that the report's samples continue."""
    generation: GenerationConfig = GenerationConfig()
    tasks: TaskList = []
    """Benchmarks, of the float and each quantised model: names, YAML files, or sections with the keys of a task."""
