"""What is minimised over pairs of answers: preference without a reward model, and the reward model itself.

Legend: N = pairs; the other letters are those of `pair_rows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ava_core.alignment.pair_rows import PairBatch
from ava_core.config.preference_training import DpoConfig, RewardConfig
from ava_core.training.objective import ObjectiveLoss


class DirectPreference:
    """DPO (arXiv 2305.18290, equation 7) or IPO (arXiv 2310.12036, equation 17) against stored log-probabilities."""

    def __init__(self, config: DpoConfig) -> None:
        self.config = config

    def count(self, batch: PairBatch) -> int:
        """Pairs."""
        return batch.num_pairs

    def loss(self, model: nn.Module, batch: PairBatch) -> ObjectiveLoss:
        """Its parts are those of `judge`."""
        output = model(input_ids=batch.input_ids, document_ids=batch.document_ids, use_cache=False)
        judged = self.judge(output.logits, batch)
        return _with_auxiliary(judged, output)

    def judge(self, logits_BSV: Tensor, batch: PairBatch) -> dict[str, Tensor]:
        """Means over the pairs: `train_loss`; `reward_accuracy`, the share of pairs whose preferred answer has become
        likelier than the other one, against the start; `reward_margin`, `chosen_reward` and `rejected_reward`, which
        are beta times the change of an answer's log-probability; `answer_loss`, of the preferred ones, in nats per
        token.
        """
        beta = self.config.beta
        log_probs, tokens = batch.answer_log_probs(logits_BSV)
        chosen, rejected = batch.sides(log_probs - batch.reference)
        lengths = batch.sides(tokens)
        margin = beta * (chosen - rejected)
        if self.config.objective == "sigmoid":
            losses = -functional.logsigmoid(margin)
        else:  # the papers' code and TRL's take means over tokens, so that beta means the same at every length
            losses = (chosen / lengths[0] - rejected / lengths[1] - 1 / (2 * beta)) ** 2
        likelihood = -batch.sides(log_probs)[0] / lengths[0]
        loss = losses.mean()
        if self.config.sft_weight:
            loss = loss + self.config.sft_weight * likelihood.mean()
        return {
            "train_loss": loss,
            "reward_accuracy": _wins(margin),
            "reward_margin": margin.mean(),
            "chosen_reward": beta * chosen.mean(),
            "rejected_reward": beta * rejected.mean(),
            "answer_loss": likelihood.mean(),
        }


class PairwiseReward:
    """The Bradley-Terry loss of a score per answer (arXiv 2203.02155, equation 1)."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config

    def count(self, batch: PairBatch) -> int:
        """Pairs."""
        return batch.num_pairs

    def loss(self, model: nn.Module, batch: PairBatch) -> ObjectiveLoss:
        """Its parts are those of `judge`."""
        output = model(
            input_ids=batch.input_ids,
            document_ids=batch.document_ids,
            scored_positions=batch.ends,
            use_cache=False,
        )
        return _with_auxiliary(self.judge(output.logits, batch), output)

    def judge(self, logits_BD1: Tensor, batch: PairBatch) -> dict[str, Tensor]:
        """Means over the pairs: `train_loss`; `reward_accuracy`, the share of pairs whose preferred answer has the
        higher score; `reward_margin`, the difference; `reward_center`, the mean of all scores."""
        chosen, rejected = batch.sides(logits_BD1.float().squeeze(-1))
        margin = chosen - rejected
        center = (chosen + rejected) ** 2
        return {
            "train_loss": (self.config.center * center - functional.logsigmoid(margin)).mean(),
            "reward_accuracy": _wins(margin),
            "reward_margin": margin.mean(),
            "reward_center": (chosen + rejected).mean() / 2,
        }


def _wins(margin_N: Tensor) -> Tensor:
    """Share of positive margins; half of those that are 0."""
    return (0.5 * (torch.sign(margin_N.detach()) + 1)).mean()


def _with_auxiliary(judged: dict[str, Tensor], output: Any) -> ObjectiveLoss:
    auxiliary = output.aux_loss
    return ObjectiveLoss(
        total=judged["train_loss"] + auxiliary,
        auxiliary=auxiliary,
        parts={name: part.detach() for name, part in judged.items()},
        routing=output.router_statistics,
    )
