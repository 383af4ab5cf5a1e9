"""The section `evaluate.generation`, for all that decodes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ava_core.config.section import AnyText, Fraction, NonNegative, Positive, Section

Cutoff = Annotated[float, Field(ge=0.0, lt=1.0)]


class GenerationConfig(Section):
    """How the samples of the report, and `ava generate` by default, are decoded."""

    max_new_tokens: Positive = 64
    """Most tokens of a continuation, the prompt not counted."""
    min_new_tokens: NonNegative = 0
    """Tokens of a continuation before the end of the document may come."""
    num_beams: Annotated[int, Field(ge=2, le=4096)] = 4
    """Beams of beam search."""
    num_beam_groups: Annotated[int, Field(ge=1, le=4096)] = 1
    """Groups of beams that avoid each other's tokens (diverse beam search, arXiv 1610.02424); divides num_beams."""
    diversity_penalty: Annotated[float, Field(gt=0.0, le=1e6)] = 0.5
    """Taken from a token's log-probability for each beam of an earlier group that chose it at the same step."""
    length_penalty: Annotated[float, Field(ge=-1e3, le=1e3)] = 1.0
    """Beam search compares sums of log-probabilities divided by length to this power; > 1 prefers longer texts."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.8
    """Divides the logits before sampling."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Probability mass of nucleus sampling."""
    top_k: NonNegative = 0
    """Most probable tokens to sample from, for top-k, and for nucleus beside top_p; candidates of contrastive search;
    0: all (top-k: 50, contrastive: 4)."""
    min_p: Fraction = 0.0
    """Least probability of a token to sample, relative to the most probable one, for min-p, and for nucleus beside
    top_p; 0: any (min-p: 0.05)."""
    typical_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Probability mass of the tokens whose surprise is nearest to the distribution's entropy (arXiv 2202.00666), for
    typical, and for nucleus beside top_p; 1: all (typical: 0.95)."""
    epsilon_cutoff: Cutoff = 0.0
    """Least probability of a token to sample, for nucleus beside top_p (arXiv 2210.15191); 0: any."""
    eta_cutoff: Cutoff = 0.0
    """The same, lower where the distribution's entropy is high: min(eta, sqrt(eta) exp(-entropy)); 0: any."""
    penalty_alpha: Fraction = 0.6
    """Contrastive search's weight of the similarity to earlier tokens, against the token's probability."""
    stop: list[AnyText] = []
    """Strings that end a text, which leaves them out."""
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Divides the logits of tokens that occurred; 1: off."""
    no_repeat_ngram_size: NonNegative = 0
    """No sequence of so many tokens occurs twice, the prompt included; 0: off."""

    @model_validator(mode="after")
    def _require_room_and_equal_groups(self) -> GenerationConfig:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens = {self.min_new_tokens}: must be <= max_new_tokens = {self.max_new_tokens}"
            )
        if self.num_beams % self.num_beam_groups:
            raise ValueError(f"num_beam_groups = {self.num_beam_groups}: must divide num_beams = {self.num_beams}")
        return self
