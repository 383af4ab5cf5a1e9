"""The section `evaluate.generation`, for all that decodes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ava_core.config.section import AnyText, Fraction, NonNegative, Positive, Section


class GenerationConfig(Section):
    """How the samples of the report, and `ava generate` by default, are decoded."""

    max_new_tokens: Positive = 64
    """Most tokens of a continuation, the prompt not counted."""
    num_beams: Annotated[int, Field(ge=2, le=4096)] = 4
    """Beams of beam search."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.8
    """Divides the logits before sampling."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Probability mass of nucleus sampling."""
    top_k: NonNegative = 0
    """Most probable tokens to sample from, for top-k, and for nucleus beside top_p; 0: all (top-k: 50)."""
    min_p: Fraction = 0.0
    """Least probability of a token to sample, relative to the most probable one, for min-p, and for nucleus beside
    top_p; 0: any (min-p: 0.05)."""
    stop: list[AnyText] = []
    """Strings that end a text, which leaves them out."""
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Divides the logits of tokens that occurred; 1: off."""
