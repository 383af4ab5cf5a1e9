"""Rollouts: the answers that a model in training gives, judged by rewards, as batches to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ava_core.alignment.player import Answering
from ava_core.alignment.rewards.answer import Answer
from ava_core.alignment.rewards.reward_set import RewardSet
from ava_core.alignment.rollout_batch import RolloutBatch
from ava_core.config.grpo import GrpoConfig
from ava_core.distributed.ranks import Ranks
from ava_core.losses import IGNORE_INDEX

SMALL = 1e-4
"""Added to a group's standard deviation."""


def advantages_of(rewards: np.ndarray, group_size: int, scale: str) -> tuple[np.ndarray, int]:
    """Distance of each reward from its group's mean, and the number of groups whose answers are all worth the same.

    Args:
        rewards: whole groups after each other.
        group_size: answers in each.
        scale: see `GrpoConfig.scale`.
    """
    groups = rewards.reshape(-1, group_size)
    alike = (groups == groups[:, :1]).all(1, keepdims=True)
    distance = groups - groups.mean(1, keepdims=True)
    if scale == "group":
        distance = distance / (groups.std(1, ddof=1, keepdims=True) + SMALL)
    return np.where(alike, 0.0, distance).reshape(-1), int(alike.sum())


@dataclass(eq=False)
class RolloutBatches:
    """Batches of fresh answers of the model in training: a function of its weights, the step, the rank and the seed.

    So a training that goes on from a checkpoint samples again what it had sampled. The ranks' shares depend on how many
    there are.

    Attributes:
        prompts: token ids of each.
        asked: what answers to them are judged by.
        rewards: what they are worth.
        decode: tokens of an answer as text.
        config: the training's section.
        seed: of the order and the samples.
        ranks: this process among those that train.
        player: answers; there once the model is.
        reference: log-probabilities of labels under the start; None without need.
    """

    prompts: Sequence[Sequence[int]]
    asked: Sequence[Answer]
    rewards: RewardSet
    decode: Callable[[list[int]], str]
    config: GrpoConfig
    seed: int
    ranks: Ranks
    player: Answering | None = None
    reference: Callable[[RolloutBatch], Tensor] | None = None

    def batch(self, step: int, rank: int = 0, ranks: int = 1, passed_over: int = 0) -> RolloutBatch:
        """As `Batches.batch`; collective."""
        count = self.config.global_batch_size // self.config.group_size
        share = count // ranks
        positions = (step + passed_over) * count + np.arange(count)
        passes, places = positions // len(self.prompts), positions % len(self.prompts)
        chosen = np.array([self._order(number)[place] for number, place in zip(passes.tolist(), places, strict=True)])
        width = max(len(self.prompts[number]) for number in chosen)
        own = np.repeat(chosen[rank * share : (rank + 1) * share], self.config.group_size)
        return self._judged(own, width, (self.seed + 7919 * (step + passed_over + 1)) * ranks + rank)

    def record(self, step: int) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def resumed(self, step: int, record: Mapping[str, Any]) -> Self:
        """The same."""
        return self

    def _judged(self, numbers: np.ndarray, width: int, seed: int) -> RolloutBatch:
        assert self.player is not None  # the objective was made
        batch = self.player.play([self.prompts[number] for number in numbers], width, seed)
        answers = texts_of(batch, [self.asked[number] for number in numbers], self.player.ends, self.decode)
        scores = self.rewards.score(answers)
        total = np.array(scores.total)
        advantages, alike = advantages_of(total, self.config.group_size, self.config.scale)
        lengths = (batch.labels != IGNORE_INDEX).sum(1).float()
        figures = {
            "reward": float(total.mean()),
            **{f"reward_{name}": float(np.mean(values)) for name, values in scores.parts.items()},
            "groups_alike": alike * self.config.group_size / len(numbers),
            "answer_tokens": float(lengths.mean()),
            "ended_answers": float(np.mean([answer.ended for answer in answers])),
        }
        return replace(
            batch,
            advantages=torch.from_numpy(advantages).float().to(batch.input_ids.device),
            reference=self.reference(batch) if self.reference else batch.reference,
            figures=self.ranks.mean(figures),
        )

    def _order(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, number)).permutation(len(self.prompts))


def texts_of(
    batch: RolloutBatch, asked: Sequence[Answer], ends: Sequence[int], decode: Callable[[list[int]], str]
) -> list[Answer]:
    """The answers of a batch as texts."""
    found = []
    for labels, template in zip(batch.labels.tolist(), asked, strict=True):
        tokens = [token for token in labels if token != IGNORE_INDEX]
        found.append(replace(template, text=decode(tokens).strip(), ended=tokens[-1] in ends))
    return found
