"""Conversations as what a training is trained on and measured by."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ava_core.alignment.packing import PackedBatches, PackedRows
from ava_core.alignment.shards import ConversationShards
from ava_core.config.train import TrainConfig
from ava_core.data.batches import bits_per_byte
from ava_core.data.tokenizer import load_tokenizer
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.progress import Progress
from ava_core.training.batch import Batches
from ava_core.training.objective import Validation
from ava_core.training.request import TrainRequest
from ava_core.training.validation import mean_loss_of


class Conversations:
    """The shards of `ava preprocess --for sft`, packed into rows of the training's context.

    Raises:
        AvaError: the shards are others.
        ConfigError: the longest conversation doesn't fit into the context, or that not into the model.
        IntegrityError: they can't be read.
    """

    figures = ("validation_loss", "validation_bits_per_byte")
    held_out_text = None

    def __init__(self, request: TrainRequest) -> None:
        self.request, self.config = request, request.train_config
        self.shards = ConversationShards.open(request.shards)
        length, reach = self.config.sequence_length, request.model_config.max_position_embeddings
        if self.shards.max_tokens > length:
            raise ConfigError(
                f"sft.sequence_length = {length}: conversations have up to {self.shards.max_tokens} tokens: raise it,"
                f" or preprocess them with --set conversations.max_tokens={length}"
            )
        if length > reach:
            raise ConfigError(
                f"sft.sequence_length = {length}: must be <= {reach}, the model's max_position_embeddings: lower it,"
                " and conversations.max_tokens with it"
            )

    @property
    def vocab_size(self) -> int:
        return self.shards.special.vocab_size

    @property
    def boundary_token_id(self) -> int:
        return self.shards.special.boundary

    @property
    def pad_token_id(self) -> int:
        return self.shards.special.padding

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """What ends the answers, where that is one token for all."""
        found = {answer_of(item.tokens, item.learnt)[1] for item in self.shards.read("validation")}
        added = load_tokenizer(self.shards.folder / "tokenizer").added_tokens_decoder
        special = {token for token, entry in added.items() if entry.special}
        return tuple(found) if len(found) == 1 and found <= special else ()

    def batches(self, ranks: Ranks, progress: Progress) -> Batches:
        return PackedBatches(self._training, self.config.global_batch_size, self.request.seed)

    def passes(self, steps: int) -> float:
        return steps * self.config.global_batch_size / len(self._training)

    def validation(self) -> Validation:
        return AnswerValidation(self._rows("validation"), self.config)

    def corpus(self) -> dict[str, int]:
        counts = {
            f"{name}_{kind}": value for name, split in self.shards.splits.items() for kind, value in vars(split).items()
        }
        return {**counts, "vocab_size": self.vocab_size}

    @cached_property
    def _training(self) -> PackedRows:
        return self._rows("train")

    def _rows(self, split: str) -> PackedRows:
        found = self.shards.read(split)
        return PackedRows.of(found, self.config.sequence_length, self.pad_token_id, self.request.seed)


class AnswerValidation:
    """The loss on held-out answers, in nats per token, and in bits per byte of them.

    Args:
        rows: of the held-out conversations.
        config: the training's section, for how many rows are scored at once, and on the way.
    """

    def __init__(self, rows: PackedRows, config: TrainConfig) -> None:
        self.rows, self.config = rows, config

    def measure(self, model: EnhancedMoEForCausalLM, *, whole: bool) -> dict[str, float]:
        """Of all rows, or of the first `evaluate_sequences`."""
        count = len(self.rows) if whole else min(len(self.rows), self.config.evaluate_sequences)
        size = self.config.micro_batch_size
        parts = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
        loss, tokens = mean_loss_of(model, (self.rows.batch(part) for part in parts))
        num_bytes = int(self.rows.num_bytes[:count].sum())
        return {"validation_loss": loss, "validation_bits_per_byte": bits_per_byte(loss * tokens, num_bytes)}


def answer_of(tokens: Any, learnt: Any) -> tuple[np.ndarray, int]:
    """The prompt of the first answer of a conversation, and the token that ends the answer."""
    first = int(np.argmax(learnt))
    after = np.flatnonzero(~np.asarray(learnt[first:]))
    last = first + int(after[0]) if len(after) else len(tokens)
    return np.asarray(tokens[:first]), int(tokens[last - 1])
