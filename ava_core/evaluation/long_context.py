"""Loss by how much of its document a model has read, in windows longer than those of its training.

A measurement beside the scores, whose windows stay those of the training: every token of the split is scored once more,
in windows of `evaluate.context` tokens that don't overlap. A token's place is counted in its window from the beginning
of its document, for that is what the model sees of it. Where a model can't read so far, the loss rises with the place.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ava_core.config.evaluate import EvaluateConfig
from ava_core.data.batches import bits_per_byte
from ava_core.data.shards import ShardedSplit
from ava_core.errors import ConfigError, IntegrityError
from ava_core.evaluation.scoring import score
from ava_core.files import parse_json
from ava_core.generation.token_bytes import token_bytes
from ava_core.progress import Progress

log = logging.getLogger(__name__)
FIRST = 32
"""Places of the first bucket; each later one is as wide as all before it together."""


def places(tokens: np.ndarray, length: int, boundary_token_id: int) -> np.ndarray:
    """How many tokens of its document stand before each input of `scoring_windows`, in the same window.

    Args:
        tokens: the stream, shape (num_tokens,).
        length: tokens of a window.
        boundary_token_id: the token that ends a document.

    Returns:
        int64 of shape (num_tokens,), by the token that the input predicts.
    """
    index = np.arange(len(tokens))
    inputs = np.concatenate([[boundary_token_id], tokens[:-1]])
    begins = np.where((inputs == boundary_token_id) | (index % length == 0), index, 0)
    return index - np.maximum.accumulate(begins)


def bucket_of(places_T: np.ndarray) -> np.ndarray:
    """The bucket of each place: 0 below FIRST, 1 below twice that, and so on."""
    return np.frexp(places_T // FIRST)[1].astype(np.int64)


def bucket_start(bucket: int) -> int:
    """The first place of a bucket."""
    return 0 if bucket == 0 else FIRST * 2 ** (bucket - 1)


@dataclass(frozen=True, kw_only=True)
class LongContext:
    """The split in long windows.

    Attributes:
        split: the text in the model's tokens.
        length: tokens of a window.
        rows: windows at once.
        trained: tokens of a window in training.
        run_T: number of the run of equal buckets that each token belongs to, never decreasing, shape (num_tokens,).
        bucket_R: the bucket of each run.
        tokens, bytes: of each bucket; bytes are 0 where tokens don't spell the text byte for byte.
    """

    split: ShardedSplit
    length: int
    rows: int
    trained: int
    run_T: np.ndarray
    bucket_R: np.ndarray
    tokens: list[int]
    bytes: list[int]

    @classmethod
    def open(
        cls,
        config: EvaluateConfig,
        model: Path,
        split: ShardedSplit,
        tokenizer: PreTrainedTokenizerBase,
        trained: int,
    ) -> LongContext | None:
        """What `evaluate.context` asks for; None where it asks for nothing.

        Raises:
            ConfigError: it is more than the model's context.
        """
        if config.context is None:
            return None
        _require_context(model, config.context)
        tokens = np.asarray(split.tokens)
        place_T = places(tokens, config.context, split.boundary_token_id)
        if (longest := int(place_T.max()) + 1) <= trained:
            log.warning("evaluate: context: no document is longer than %d tokens of a window", longest)
        bucket_T = bucket_of(place_T)
        change_T = np.diff(bucket_T, prepend=bucket_T[:1]) != 0
        counts = np.bincount(bucket_T)
        return cls(
            split=split,
            length=config.context,
            rows=max(1, config.batch_size * trained // config.context),
            trained=trained,
            run_T=np.cumsum(change_T),
            bucket_R=bucket_T[np.concatenate([[True], change_T[1:]])],
            tokens=counts.tolist(),
            bytes=_bytes_of(tokens, bucket_T, tokenizer, split.num_bytes),
        )

    def measure(self, name: str, model: PreTrainedModel, state: Path, progress: Progress) -> LongScore:
        """Score a model; after a kill the next call goes on from what it kept in `state`."""
        with progress.task(f"scoring {name} in windows of {self.length}", self.split.num_tokens) as advance:
            found = score(
                model,
                self.split.tokens,
                sequence_length=self.length,
                boundary_token_id=self.split.boundary_token_id,
                token_classes=np.zeros(model.config.vocab_size, np.int64),
                units=self.run_T,
                batch_size=self.rows,
                kept=state / f"{name}.context.json",
                advance=advance,
            )
        nats = np.bincount(self.bucket_R, found.unit_nats, len(self.tokens))
        return LongScore(nats=nats.tolist(), tokens=self.tokens, bytes=self.bytes, num_bytes=self.split.num_bytes)

    def contents(self, scores: Mapping[str, LongScore]) -> dict[str, Any]:
        """For evaluation.json."""
        starts = [bucket_start(bucket) for bucket in range(len(self.tokens))]
        buckets = [
            {"first": first, "tokens": tokens, "bytes": size}
            for first, tokens, size in zip(starts, self.tokens, self.bytes, strict=True)
        ]
        return {
            "context": {
                "length": self.length,
                "trained": self.trained,
                "buckets": buckets,
                "loss": {name: found.losses for name, found in scores.items()},
                "bits_per_byte": {name: found.bits for name, found in scores.items()},
            }
        }


@dataclass(frozen=True, kw_only=True)
class LongScore:
    """Sums by bucket.

    Attributes:
        nats: lost on its tokens.
        tokens, bytes: as in `LongContext`.
        num_bytes: of the whole text.
    """

    nats: list[float]
    tokens: list[int]
    bytes: list[int]
    num_bytes: int

    @property
    def losses(self) -> list[float | None]:
        """Nats per token of each bucket; None where there is no token."""
        return [nats / tokens if tokens else None for nats, tokens in zip(self.nats, self.tokens, strict=True)]

    @property
    def bits(self) -> list[float | None]:
        """Bits per byte of each bucket; None where its bytes aren't known."""
        return [bits_per_byte(nats, size) if size else None for nats, size in zip(self.nats, self.bytes, strict=True)]

    @property
    def figures(self) -> dict[str, float]:
        """For metrics.json: of all tokens, and nats per token from each place on up to twice that."""
        named = {f"context_loss_from_{bucket_start(index)}": loss for index, loss in enumerate(self.losses)}
        return {
            "context_loss": sum(self.nats) / sum(self.tokens),
            "context_bits_per_byte": bits_per_byte(sum(self.nats), self.num_bytes),
            **{name: loss for name, loss in named.items() if loss is not None},
        }


def _require_context(model: Path, context: int) -> None:
    path = model / "config.json"
    try:
        longest = int(parse_json(path.read_bytes())["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: can't be read ({error}): restore the folder or train again") from error
    if context > longest:
        raise ConfigError(
            f"evaluate.context = {context}: must be <= {longest}, the model's context (max_position_embeddings)"
        )


def _bytes_of(
    tokens: np.ndarray, bucket_T: np.ndarray, tokenizer: PreTrainedTokenizerBase, num_bytes: int
) -> list[int]:
    spelt, (used, inverse_T) = token_bytes(tokenizer), np.unique(tokens, return_inverse=True)
    length_T = np.asarray([len(spelt[token]) for token in used.tolist()], np.int64)[inverse_T]
    found = np.bincount(bucket_T, length_T).astype(np.int64)
    return (found if found.sum() == num_bytes else np.zeros_like(found)).tolist()
