"""The section `train.loss`, for all that computes a loss."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ava_core.config.section import PositiveNumber, Section, Weight


class LossConfig(Section):
    """The parts of the training loss that are computed from predictions; measurements never use them.

    Those that the routers compute (balance, z-loss, diversity) have their weights in the section `model`. An
    experimental part is correct, tested and off: where it was measured it didn't pay (benchmarks/LOG.md).
    """

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability spread over the whole vocabulary by the cross-entropy."""
    temperature: PositiveNumber = 1.0
    """Divides the logits of the cross-entropy. Experimental: 1.5 made the model worse."""
    z_loss_weight: Weight = 0.0
    """Weight of the squared log-partition of the output logits."""
    focal_weight: Weight = 0.0
    """Weight of the focal loss, which counts hard tokens more (arXiv 1708.02002)."""
    focal_gamma: Weight = 2.0
    """Exponent of (1 - p) in the focal loss."""
    repetition_weight: Weight = 0.0
    """Weight of the unlikelihood of repeating the last token (arXiv 1908.04319). Experimental: samples repeated
    themselves as before."""
    ngram_weight: Weight = 0.0
    """Weight of the unlikelihood of completing an n-gram that occurred before in the sequence. Experimental: samples
    repeated themselves as before."""
    ngram_size: Annotated[int, Field(ge=2, le=4096)] = 4
    """n of the n-gram unlikelihood."""
    early_end_weight: Weight = 0.0
    """Weight of the penalty on ending a document where it goes on. Experimental: samples were as before."""
    multi_token_weight: Weight = 0.0
    """Weight of predicting further tokens ahead with extra heads on the shared trunk (arXiv 2404.19737). Experimental:
    it cost time and gave nothing."""
    multi_token_depth: Annotated[int, Field(gt=0, le=256)] = 1
    """Extra heads: head d predicts the token d after the next one. They are not part of the trained model's folder."""
