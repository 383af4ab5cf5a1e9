"""A model in training that answers prompts, by its own `generate`. Shapes: see `rollout_batch`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ava_core.alignment.rollout_batch import RolloutBatch, batch_of
from ava_core.alignment.sampling import left_padded, padding_of, stops_of
from ava_core.config.grpo import GrpoConfig
from ava_core.generation.rollout import record_routes


class Answering(Protocol):
    """Who gives the answers that are learnt from."""

    @property
    def ends(self) -> Sequence[int]:
        """Tokens at which an answer ends."""

    def play(self, prompts: Sequence[Sequence[int]], width: int, seed: int) -> RolloutBatch:
        """An answer to each prompt, without what it is worth.

        Args:
            prompts: token ids.
            width: of all prompts of the step, padded.
            seed: of the samples.
        """


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
        return batch_of(
            sequences,
            asked["attention_mask"],
            noted.finish(sequences),
            stops,
            rollout.routes(sequences) if rollout else (),
        )
