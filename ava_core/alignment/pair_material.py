"""Pairs of answers as what a training is trained on and measured by."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ava_core.alignment.material import PackedMaterial
from ava_core.alignment.packing import parts
from ava_core.alignment.pair_objectives import DirectPreference, PairwiseReward
from ava_core.alignment.pair_rows import PairBatch, PairRows
from ava_core.config.preference_training import DpoConfig, RewardConfig
from ava_core.distributed.ranks import Ranks
from ava_core.models import EnhancedMoEForCausalLM, EnhancedMoEForSequenceClassification
from ava_core.progress import Progress
from ava_core.training.batch import Batches
from ava_core.training.objective import Validation
from ava_core.training.request import TrainRequest


class Judge(Protocol):
    """An objective over pairs."""

    def judge(self, logits: Tensor, batch: PairBatch) -> dict[str, Tensor]:
        """Means over the pairs of a batch, of what the model gave for it; one is `train_loss`."""
        ...


class Pairs(PackedMaterial):
    """The shards of `ava preprocess --for preference`; raises as `ShardsMaterial`.

    Args:
        request: with those shards.
        section: the training's, for messages.
    """

    figures = ("validation_loss", "validation_accuracy", "validation_margin")

    def __init__(self, request: TrainRequest, section: str) -> None:
        super().__init__(request, "preference", section)

    def objective(self, model: Any = None) -> DirectPreference | PairwiseReward:
        """What is minimised; the model needs no preparation."""
        raise NotImplementedError

    def validation(self) -> Validation:
        return PairValidation(self.held_out, self.objective(), self.config.micro_batch_size)

    @cached_property
    def training(self) -> PairRows:
        """The pairs that are trained on."""
        return PairRows.of(self.rows("train", together=2))

    @cached_property
    def held_out(self) -> PairRows:
        """The pairs of the validation split."""
        return PairRows.of(self.rows("validation", together=2))


class RewardPairs(Pairs):
    """Pairs that a reward model learns to tell apart."""

    head = EnhancedMoEForSequenceClassification

    def __init__(self, request: TrainRequest) -> None:
        super().__init__(request, "reward")

    def objective(self, model: Any = None) -> PairwiseReward:
        assert isinstance(self.config, RewardConfig)
        return PairwiseReward(self.config)


class PreferredPairs(Pairs):
    """Pairs with the log-probabilities of the model that the training begins from."""

    head = EnhancedMoEForCausalLM

    def __init__(self, request: TrainRequest) -> None:
        super().__init__(request, "dpo")

    def objective(self, model: Any = None) -> DirectPreference:
        assert isinstance(self.config, DpoConfig)
        return DirectPreference(self.config)

    def batches(self, ranks: Ranks, progress: Progress) -> Batches:
        """Collective: each rank scores its share of the pairs with the start."""
        start = self.start().to(ranks.device)
        scored = {"training": self.training, "held_out": self.held_out}
        for name, rows in scored.items():
            reference = _log_probs(start, rows, self.config.micro_batch_size, ranks, progress, name)
            setattr(self, name, rows.referred_to(reference))
        return super().batches(ranks, progress)


class PairValidation:
    """The loss on held-out pairs, the share of them that is ranked rightly, and the mean margin.

    All of them are scored each time: they are few.

    Args:
        rows: the pairs.
        objective: what is minimised.
        size: rows scored at once.
    """

    def __init__(self, rows: PairRows, objective: Judge, size: int) -> None:
        self.rows, self.objective, self.size = rows, objective, size

    @torch.no_grad()
    def measure(self, model: Any, *, whole: bool) -> dict[str, float]:
        """The three figures."""
        model.eval()
        device = next(model.parameters()).device
        sums = dict.fromkeys(("train_loss", "reward_accuracy", "reward_margin"), 0.0)
        for part in parts(len(self.rows), self.size):
            batch = self.rows.batch(part).to(device)
            judged = self.objective.judge(_logits(model, batch), batch)
            for name in sums:
                sums[name] += float(judged[name]) * batch.num_pairs
        loss, accuracy, margin = (total / int(self.rows.pairs.sum()) for total in sums.values())
        return {"validation_loss": loss, "validation_accuracy": accuracy, "validation_margin": margin}


def _logits(model: Any, batch: PairBatch) -> Tensor:
    scored = {} if isinstance(model, EnhancedMoEForCausalLM) else {"scored_positions": batch.ends}
    inputs = {"input_ids": batch.input_ids, "document_ids": batch.document_ids}
    return model(**inputs, **scored, use_cache=False).logits


@torch.no_grad()
def _log_probs(model: Any, rows: PairRows, size: int, ranks: Ranks, progress: Progress, name: str) -> np.ndarray:
    """(R, D): of each answer, in float32; every rank computes a share, and all get the whole."""
    device = next(model.parameters()).device
    found = torch.zeros(rows.reference.shape, dtype=torch.float32)
    own = parts(len(rows), size)[ranks.rank :: ranks.size]
    with progress.task(f"reference {name}", len(own)) as advance:
        for number, part in enumerate(own, start=1):
            batch = rows.batch(part).to(device)
            log_probs, _ = batch.answer_log_probs(_logits(model, batch))
            found[torch.from_numpy(part)] = log_probs.cpu()
            advance(number)
    return ranks.sum(found).numpy()
