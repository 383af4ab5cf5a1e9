"""Rollouts: the answers that a model in training gives, as batches to learn from.

Legend: B = answers, S = positions that are read: a prompt, padded on its left, and its answer, padded on its right;
L = layers, K = experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessor, LogitsProcessorList

from ava_core.alignment.rewards.answer import Answer
from ava_core.alignment.rewards.reward_set import RewardSet
from ava_core.alignment.sampling import left_padded, padding_of, stops_of
from ava_core.config.grpo import GrpoConfig
from ava_core.distributed.ranks import Ranks
from ava_core.generation.rollout import record_routes
from ava_core.losses import IGNORE_INDEX
from ava_core.models.routing import Routes
from ava_core.training.batch import Batch

SMALL = 1e-4
"""Added to a group's standard deviation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutBatch(Batch):
    """Answers to learn from; labels are the answers' tokens.

    Attributes:
        attention_mask: (B, S), 1 for the prompt and the answer.
        advantages: (B,), float32: what an answer is worth beside the others to its prompt.
        sampled: (B, S), float32: log-probability of each label when it was sampled; 0 where there is none.
        reference: (B, S), float32: the same under the model that the training began from; empty (B, 0) without need.
        expert_ids, used, selected: (B, S, L, K): the rollout's routes; empty (B, 0, L, K) if they aren't replayed.
    """

    attention_mask: Tensor
    advantages: Tensor
    sampled: Tensor
    reference: Tensor
    expert_ids: Tensor
    used: Tensor
    selected: Tensor

    @property
    def routes(self) -> tuple[Routes, ...] | None:
        """The rollout's routes, as a model takes them."""
        if not self.expert_ids.shape[1]:
            return None
        layers = zip(
            *(part.flatten(0, 1).unbind(1) for part in (self.expert_ids, self.used, self.selected)), strict=True
        )
        return tuple(Routes(expert_ids_TK=ids, used_TK=used, selected_TK=selected) for ids, used, selected in layers)

    def label_log_probs(self, logits_BSV: Tensor, temperature: float) -> Tensor:
        """(B, S), float32: of each label, at the temperature of the sampling; 0 where there is none."""
        scaled = logits_BSV.float().flatten(0, 1) / temperature
        losses = functional.cross_entropy(scaled, self.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
        return -losses.view_as(self.labels)


class _SampledLogProbs(LogitsProcessor):
    """Notes the log-probability of each token that was drawn, without keeping all logits."""

    def __init__(self, width: int, temperature: float) -> None:
        self.width, self.temperature = width, temperature
        self.parts: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.finish(input_ids)
        self._last = (scores.float() / self.temperature).log_softmax(-1)  # which comes after all processors
        return scores

    def finish(self, sequences: Tensor) -> Tensor:
        """(B, N): of the N tokens that were drawn so far."""
        drawn = sequences.shape[1] - self.width
        if self._last is not None and len(self.parts) < drawn:
            token = sequences[:, self.width + len(self.parts)]
            self.parts.append(self._last.gather(1, token[:, None])[:, 0])
        return torch.stack(self.parts, dim=1) if self.parts else sequences.new_zeros((len(sequences), 0))


@dataclass
class Player:
    """A model that answers prompts.

    Attributes:
        model: of ours; any mode, left in evaluation mode.
        ends: tokens at which an answer ends.
        config: the training's section.
    """

    model: Any
    ends: Sequence[int]
    config: GrpoConfig

    @torch.no_grad()
    def play(self, prompts: Sequence[Sequence[int]], width: int, seed: int) -> RolloutBatch:
        """An answer to each prompt, without what it is worth.

        Args:
            prompts: token ids.
            width: of all prompts of the step, padded.
            seed: of the samples.
        """
        model = self.model.eval()
        device, asked = model.device, left_padded(model, prompts, width)
        stops = stops_of(model, self.ends)
        noted = _SampledLogProbs(width, self.config.temperature)
        devices = [device] if device.type == "cuda" else []
        recording = record_routes(model) if self.config.replay else nullcontext()
        with recording as rollout, torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            sequences = model.generate(
                **asked,
                do_sample=True,
                top_k=0,
                temperature=self.config.temperature,
                max_new_tokens=self.config.max_new_tokens,
                eos_token_id=stops,
                pad_token_id=padding_of(model),
                logits_processor=LogitsProcessorList([noted]),
            )
        drawn = sequences[:, width:]
        ended = torch.isin(drawn, torch.tensor(stops, device=device))
        # The token that ends it is the answer's last.
        is_answer = (ended.long().cumsum(1) - ended.long()) == 0
        inputs, length = sequences[:, :-1], sequences.shape[1] - 1
        labels = torch.full_like(inputs, IGNORE_INDEX)
        labels[:, width - 1 :] = torch.where(is_answer, drawn, IGNORE_INDEX)
        sampled = torch.zeros(inputs.shape, dtype=torch.float32, device=device)
        sampled[:, width - 1 :] = noted.finish(sequences) * is_answer
        attention = torch.cat([asked["attention_mask"], is_answer.long()], dim=1)[:, :length]
        expert_ids, used, selected = _recorded(rollout.routes(sequences) if rollout else (), len(prompts))
        return RolloutBatch(
            input_ids=inputs,
            labels=labels,
            attention_mask=attention,
            advantages=torch.zeros(len(prompts), device=device),
            sampled=sampled,
            reference=inputs.new_zeros((len(prompts), 0), dtype=torch.float32),
            expert_ids=expert_ids,
            used=used,
            selected=selected,
        )


def _recorded(routes: Sequence[Routes], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of `Routes` over all layers, (B, S, L, K) each."""
    if not routes:
        empty = torch.zeros((rows, 0, 0, 0), dtype=torch.bool)
        return empty.long(), empty, empty

    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(layer, name).unflatten(0, (rows, -1)) for layer in routes], dim=2)

    return stacked("expert_ids_TK"), stacked("used_TK"), stacked("selected_TK")


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
    player: Player | None = None
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
