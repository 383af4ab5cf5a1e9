"""The `quantize` section: what the exported model stores, and how close to the float model it has to be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ava_core.config.section import Fraction, NonNegative, Positive, PositiveNumber, Section, Weight
from ava_core.steps.schemes import SCHEMES

SchemeName = Literal[*SCHEMES]  # type: ignore[valid-type]


class SchemeConfig(Section):
    """What the mixed precision of a scheme aims at, and the bounds past which the step fails."""

    size: Annotated[float, Field(gt=0.0, le=1.0)]
    """Share of the float32 model's bytes that weights and scales may take; widening stops there."""
    increase_percent: PositiveNumber
    """Aim: rise of bits per byte over the float model, in percent of the float model's."""
    expert_agreement: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Aim: share of (token, layer) pairs with the same set of experts."""
    max_increase_percent: Weight
    """Bound: rise of bits per byte over the float model, in percent of the float model's."""
    min_expert_agreement: Fraction
    """Bound: share of (token, layer) pairs with the same set of experts."""
    min_top1_agreement: Fraction
    """Bound: share of tokens with the same most likely next token."""


class Int8Config(SchemeConfig):
    """Eight bits for most weights."""

    size: Annotated[float, Field(gt=0.0, le=1.0)] = 0.275
    increase_percent: PositiveNumber = 0.1
    expert_agreement: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.995
    max_increase_percent: Weight = 0.5
    min_expert_agreement: Fraction = 0.99
    min_top1_agreement: Fraction = 0.9


class Int4Config(SchemeConfig):
    """Four bits for the experts, which most weights are in."""

    size: Annotated[float, Field(gt=0.0, le=1.0)] = 0.175
    increase_percent: PositiveNumber = 1.0
    expert_agreement: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.96
    max_increase_percent: Weight = 2.0
    min_expert_agreement: Fraction = 0.93
    min_top1_agreement: Fraction = 0.8


class QuantizeConfig(Section):
    """ONNX export and weight quantisation."""

    schemes: Annotated[list[SchemeName], Field(min_length=1)] = ["int8"]
    """Schemes that the pipeline and dvc.yaml build, each once; `ava quantize` builds the one given with --scheme."""
    portable: bool = False
    """Standard ONNX operators only, for runtimes other than ONNX Runtime; evaluates every expert for every token."""
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    """Weights that share one scale; null: 32, or 16 where 32 doesn't divide a row."""
    symmetric: bool = True
    """Without zero points; with them, skewed blocks are rounded more finely."""
    rounded_activations: bool = True
    """Let ONNX Runtime round activations to 8 bits per block (accuracy level 4 of MatMulNBits): int4 products are two
    to four times as fast. 8-bit experts are computed that way in any case."""
    calibration_sequences: NonNegative = 8
    """Training sequences on which the damage of each format of each matrix is measured; 0: 8 bits for
    everything, or for int4 4 bits for the experts and 8 for the rest."""
    parity_sequences: Positive = 16
    """Validation sequences on which the quantised model is compared with the float one."""
    int8: Int8Config = Int8Config()
    int4: Int4Config = Int4Config()

    @model_validator(mode="after")
    def _schemes_differ(self) -> QuantizeConfig:
        if len(set(self.schemes)) < len(self.schemes):
            raise ValueError(f"schemes = {', '.join(self.schemes)}: must name each scheme once")
        return self

    @model_validator(mode="after")
    def _portable_is_symmetric(self) -> QuantizeConfig:
        if self.portable and not self.symmetric:
            raise ValueError("symmetric = false: must be true with portable = true")
        return self
