"""Learning from rewards of the model's own answers, and what it has changed beside the start."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ava_core.alignment.comparison import Asked, compare
from ava_core.alignment.held_out import read_prompts
from ava_core.alignment.material import ShardsMaterial
from ava_core.alignment.player import Answering, Player
from ava_core.alignment.policy_objective import GroupRelativePolicy
from ava_core.alignment.rewards.answer import Answer
from ava_core.alignment.rewards.reward_set import RewardSet
from ava_core.alignment.rollout_batch import RolloutBatch
from ava_core.alignment.rollouts import RolloutBatches, texts_of
from ava_core.alignment.tokens import end_of_answer
from ava_core.config.grpo import GrpoConfig
from ava_core.data.tokenizer import load_tokenizer
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.pretrained import load_pretrained
from ava_core.progress import Progress
from ava_core.training.batch import Batches
from ava_core.training.objective import Validation
from ava_core.training.request import TrainRequest, TrainResult
from ava_core.training.train import train_on


def train(request: TrainRequest, progress: Progress) -> TrainResult:
    """Train on the model's own answers in this process, alone or as one of several ranks; rank 0 measures it beside its
    start.

    Args:
        request: with `init`, and shards of `ava preprocess --for prompts`.
        progress: shows progress.

    Raises:
        as `ava_core.training.train.train`, and AvaError: a reward raises, or gives no numbers.
    """
    result = train_on(Prompts, request, progress)
    if Ranks.from_environment().is_first:
        assert request.init is not None
        material = Prompts(request)
        end, _ = load_pretrained(EnhancedMoEForCausalLM, request.output)
        result.metrics.update(compare(material.start(), end.eval(), material.compared(), request.output))
    return result


class Prompts(ShardsMaterial):
    """The shards of `ava preprocess --for prompts`; raises as `ShardsMaterial`, and ConfigError: no such reward."""

    head = EnhancedMoEForCausalLM
    figures = ("validation_loss", "validation_reward")
    config: GrpoConfig

    def __init__(self, request: TrainRequest) -> None:
        super().__init__(request, "prompts", "grpo")
        _require_possible(self.config)
        longest = self.shards.max_tokens + self.config.max_new_tokens
        if longest > self.config.sequence_length:
            raise ConfigError(
                f"grpo.max_new_tokens = {self.config.max_new_tokens}: with prompts of up to {self.shards.max_tokens}"
                f" tokens it must be <= {self.config.sequence_length - self.shards.max_tokens}, for"
                f" grpo.sequence_length = {self.config.sequence_length}"
            )
        self.rewards = RewardSet.from_config(self.config.rewards)
        self._rollouts: RolloutBatches | None = None

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """What ends an answer that is sampled: that of `ends`, or the last token of a template that has none."""
        return end_of_answer(self._tokenizer)

    def batches(self, ranks: Ranks, progress: Progress) -> Batches:
        reference = None
        if self.config.beta:
            start = self.start().to(ranks.device)

            def reference(batch: RolloutBatch) -> Tensor:
                return _log_probs(start, batch, self.config)

        prompts, asked = self._asked("train", None)
        self._rollouts = RolloutBatches(
            prompts, asked, self.rewards, self._decode, self.config, self.request.seed, ranks, reference=reference
        )
        return self._rollouts

    def objective(self, model: Any) -> GroupRelativePolicy:
        assert self._rollouts is not None  # `batches` was called
        self._rollouts.player = self._player(model)
        return GroupRelativePolicy(self.config)

    def _player(self, model: Any) -> Answering:
        if self.config.rollout == "generate":
            return Player(model, self.stops, self.config)
        from ava_core.alignment.onnx_player import OnnxPlayer

        return OnnxPlayer(model, self.stops, self.config)

    def passes(self, steps: int) -> float:
        prompts = self.config.global_batch_size // self.config.group_size
        return steps * prompts / self.shards.splits["train"].conversations

    def validation(self) -> Validation:
        return RewardValidation(self)

    def compared(self) -> Asked:
        """What start and finished model are asked."""
        prompts, asked = self._asked("validation", self.config.samples)
        return Asked(
            prompts=prompts,
            ends=[self.stops[0]] * len(prompts),
            authors=asked,
            limit=self.config.max_new_tokens,
            tokenizer=self.shards.folder / "tokenizer",
            rewards=self.rewards,
            seed=self.request.seed,
        )

    def held_out(self) -> tuple[list[list[int]], list[Answer]]:
        """As many prompts as a step has answers."""
        return self._asked("validation", self.config.global_batch_size)

    def texts(self, batch: RolloutBatch, asked: list[Answer]) -> list[Answer]:
        """The answers of a batch."""
        return texts_of(batch, asked, self.stops, self._decode)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.shards.folder / "tokenizer")

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _asked(self, split: str, count: int | None) -> tuple[list[list[int]], list[Answer]]:
        items = self.shards.read(split)[:count]
        return [item.tokens.tolist() for item in items], read_prompts(self.shards, split)[:count]


class RewardValidation:
    """The mean reward of answers to held-out prompts, always the same prompts and seed; the loss is its negative."""

    def __init__(self, material: Prompts) -> None:
        self.material = material
        self.prompts, self.asked = material.held_out()

    def measure(self, model: Any, *, whole: bool) -> dict[str, float]:
        """Both figures."""
        player = Player(model, self.material.stops, self.material.config.model_copy(update={"replay": False}))
        batch = player.play(self.prompts, max(map(len, self.prompts)), self.material.request.seed)
        reward = float(np.mean(self.material.rewards.score(self.material.texts(batch, self.asked)).total))
        return {"validation_loss": -reward, "validation_reward": reward}


def _require_possible(config: GrpoConfig) -> None:
    """What the section may have taken over from `train`, whom it doesn't concern."""
    unit = config.group_size * config.processes
    if config.global_batch_size % unit:
        raise ConfigError(
            f"grpo.global_batch_size = {config.global_batch_size}: must be a multiple of group_size x processes ="
            f" {config.group_size} x {config.processes}"
        )
    if config.rollout == "onnx" and config.adapter.kind:
        raise ConfigError(
            "grpo.rollout = onnx: has no place for grpo.adapter: set grpo.rollout = generate, or train all weights"
        )
    if config.zero_stage == 3:
        raise ConfigError(
            "grpo.zero_stage = 3: its weights are cut up, and to sample they are needed whole: use 2, or less"
        )


@torch.no_grad()
def _log_probs(model: Any, batch: RolloutBatch, config: GrpoConfig) -> Tensor:
    found = []
    for part in batch.split_within(config.micro_batch_size):
        output = model(input_ids=part.input_ids, attention_mask=part.attention_mask, use_cache=False)
        found.append(part.label_log_probs(output.logits, config.temperature))
    return torch.cat(found)
