"""Conversations as what a training is trained on and measured by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ava_core.alignment.packing import PackedBatches, PackedRows, Rows, parts
from ava_core.alignment.shards import MADE_OF, ConversationShards
from ava_core.config.train import TrainConfig
from ava_core.data.batches import bits_per_byte
from ava_core.data.tokenizer import load_tokenizer
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.generation.chat import end_of_turn
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.progress import Progress
from ava_core.training.batch import Batches
from ava_core.training.beginning import build_from
from ava_core.training.initial import Parent
from ava_core.training.objective import Validation
from ava_core.training.pretraining import NextToken
from ava_core.training.request import TrainRequest
from ava_core.training.validation import mean_loss_of


class ShardsMaterial:
    """What trainings on shards of conversations or pairs have in common.

    Args:
        request: with those shards.
        purpose: what they have to be made for.
        section: the training's, for messages.

    Raises:
        AvaError: the shards are others.
        ConfigError: what has to share a row doesn't fit into the training's context, or that not into the model.
        IntegrityError: they can't be read.
    """

    held_out_text = None

    def __init__(self, request: TrainRequest, purpose: str = "sft", section: str = "sft") -> None:
        self.request, self.config = request, request.train_config
        self.shards = ConversationShards.open(request.shards, purpose)
        length, reach = self.config.sequence_length, request.model_config.max_position_embeddings
        if self.shards.max_tokens > length:
            raise ConfigError(
                f"{section}.sequence_length = {length}: {MADE_OF[purpose]} have up to {self.shards.max_tokens} tokens:"
                f" raise it, or preprocess them with --set {MADE_OF[purpose]}.max_tokens={length}"
            )
        if length > reach:
            raise ConfigError(
                f"{section}.sequence_length = {length}: must be <= {reach}, the model's max_position_embeddings: lower"
                f" it, and {MADE_OF[purpose]}.max_tokens with it"
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
        """The special token that the template ends an answer with; none where it writes only text."""
        return end_of_turn(load_tokenizer(self.shards.folder / "tokenizer")).tokens

    def start(self) -> Any:
        """The model that the training begins from, float32, with rows for what the tokenizer has got since."""
        assert self.request.init is not None
        return build_from(Parent.read(self.request.init), self.request.model_config, self).eval()

    def corpus(self) -> dict[str, int]:
        counts = {
            f"{name}_{kind}": value for name, split in self.shards.splits.items() for kind, value in vars(split).items()
        }
        return {**counts, "vocab_size": self.vocab_size}

    def rows(self, split: str, together: int = 1) -> PackedRows:
        """A split in rows of the training's context."""
        found = self.shards.read(split)
        return PackedRows.of(found, self.config.sequence_length, self.pad_token_id, self.request.seed, together)


class PackedMaterial(ShardsMaterial):
    """Shards in packed rows, which are dealt out as they are; raises as `ShardsMaterial`."""

    @property
    def training(self) -> Rows:
        """What is trained on."""
        raise NotImplementedError

    def batches(self, ranks: Ranks, progress: Progress) -> Batches:
        return PackedBatches(self.training, self.config.global_batch_size, self.request.seed)

    def passes(self, steps: int) -> float:
        return steps * self.config.global_batch_size / len(self.training)


class Conversations(PackedMaterial):
    """The shards of `ava preprocess --for sft`; raises as `ShardsMaterial`."""

    head = EnhancedMoEForCausalLM
    figures = ("validation_loss", "validation_bits_per_byte")

    def objective(self, model: EnhancedMoEForCausalLM) -> NextToken:
        return NextToken(model, self.config)

    def validation(self) -> Validation:
        return AnswerValidation(self.rows("validation"), self.config)

    @cached_property
    def training(self) -> PackedRows:
        """The conversations that are trained on."""
        return self.rows("train")


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
        loss, tokens = mean_loss_of(model, (self.rows.batch(part) for part in parts(count, size)))
        num_bytes = int(self.rows.num_bytes[:count].sum())
        return {"validation_loss": loss, "validation_bits_per_byte": bits_per_byte(loss * tokens, num_bytes)}


def answer_of(tokens: Any, learnt: Any, ends: Sequence[int]) -> tuple[np.ndarray, int]:
    """The prompt of the first answer of a conversation, and the token that ends the answer: the first of `ends` in it,
    for a template may go on with a line break; its last one where it has none of them."""
    first = int(np.argmax(learnt))
    after = np.flatnonzero(~np.asarray(learnt[first:]))
    last = first + int(after[0]) if len(after) else len(tokens)
    answer = [int(token) for token in tokens[first:last]]
    return np.asarray(tokens[:first]), next((token for token in answer if token in ends), answer[-1])
