"""The sections `reward` and `dpo`: what is trained on pairs of answers, of which one is preferred."""

from __future__ import annotations

from typing import ClassVar, Literal

from ava_core.config.finetuning import AnsweringFineTuning, FineTuning
from ava_core.config.section import LearningRate, Positive, PositiveNumber, Weight
from ava_core.config.train import TrainConfig

LOSS = "the loss is of pairs of answers"
DPO_RATE_SHARE = 0.02


class RewardConfig(FineTuning):
    """A reward model. A key that isn't set is that of `train`; the rates are a fifth of its."""

    refused: ClassVar = {"loss": LOSS, "adapter": "the head of a reward model is trained whole, and so is its body"}

    steps: Positive = 100
    evaluate_every: Positive = 25
    center: Weight = 0.01
    """Weight of the squared sum of a pair's two scores, which keeps scores around 0 (arXiv 2312.09244, as in TRL's
    `center_rewards_coefficient`)."""


class DpoConfig(AnsweringFineTuning):
    """Direct preference optimisation. A key that isn't set is that of `train`; the rates are a fiftieth of its."""

    rate_share: ClassVar[float] = DPO_RATE_SHARE
    refused: ClassVar = {"loss": LOSS}

    steps: Positive = 100
    evaluate_every: Positive = 25
    learning_rate: LearningRate = DPO_RATE_SHARE * TrainConfig.model_fields["learning_rate"].default
    adam_learning_rate: LearningRate = DPO_RATE_SHARE * TrainConfig.model_fields["adam_learning_rate"].default
    beta: PositiveNumber = 0.1
    """How strongly the model is held to the one that it began from."""
    objective: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: DPO (arXiv 2305.18290, equation 7); `ipo`: the squared distance of the margin per token from
    1 / (2 beta), which doesn't grow without bound (arXiv 2310.12036, equation 17)."""
    sft_weight: Weight = 0.0
    """Weight of the preferred answer's negative log-likelihood, in nats per token, beside the objective (RPO, arXiv
    2404.19733): it keeps the answers likely."""
