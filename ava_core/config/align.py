"""The section `align`: which steps of alignment the pipeline has."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ava_core.config.section import Section

StageName = Literal["sft", "reward", "dpo", "grpo"]


class AlignConfig(Section):
    """Alignment of the trained model, between train and quantize."""

    stages: list[StageName] = []
    """Steps in their order; what follows takes the last one's model. Empty: the pretrained model goes on as it is."""

    @model_validator(mode="after")
    def _names_each_once(self) -> AlignConfig:
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages = {self.stages}: names one twice")
        return self
