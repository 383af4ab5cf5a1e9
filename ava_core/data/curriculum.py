"""Curriculum: shorter sequences, smaller batches, easy windows first.

A batch is a pure function of (seed, index of the batch) and, in a resumed run, of where the checkpoint's run ended. A
*window* is what `TrainingBatches` deals out, train.sequence_length inputs long; batch sizes count windows, whatever
length the sequences are cut to.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ava_core.config.train import CurriculumConfig, TrainConfig
from ava_core.data.batches import TrainingBatches, WindowBatch
from ava_core.data.difficulty import bigram_scores, count_windows, length_scores, rarity_scores
from ava_core.errors import AvaError, IntegrityError

log = logging.getLogger(__name__)
_ORDER, _DRAW = 1, 2
"""Third words of the random seeds here; the seeds of `batches` have two words."""


@dataclass(frozen=True)
class Stages:
    """An integer that is constant in stages, and changes at the batches between them.

    Attributes:
        ends: index of the first batch after each stage but the last; never falling. A stage may be empty.
        values: the number in each stage, one more than `ends`.
    """

    ends: tuple[int, ...]
    values: tuple[int, ...]

    @classmethod
    def equal(cls, early: Sequence[int], final: int, batches: float) -> Stages:
        """The values of `early`, each for an equal part of the first `batches` batches (rounded), then `final`."""
        ends = (round(batches * stage / len(early)) for stage in range(1, len(early) + 1))
        return cls(tuple(ends), (*early, final))

    def at(self, index: int) -> int:
        """The value at batch `index`."""
        return self.values[bisect_right(self.ends, index)]

    def total(self, index: int) -> int:
        """Sum of the values at all batches before `index`."""
        bounds = [0, *(min(end, index) for end in self.ends), index]
        return sum(value * (bounds[i + 1] - bounds[i]) for i, value in enumerate(self.values))


@dataclass(frozen=True)
class Start:
    """Where a run continues the ordinary order of windows.

    Attributes:
        batch: index of the first batch.
        windows: windows of the order that come before it, over all epochs: trained on, or passed over after a rewind.
    """

    batch: int = 0
    windows: int = 0


@dataclass(frozen=True)
class CurriculumBatches:
    """Training batches under a curriculum; with an empty one, exactly those of `ordinary`.

    - Sequence lengths: each window of S + 1 tokens is cut into S / L windows of L + 1 that hold the same targets.
      They follow each other in the batch, so all of them are on one rank.
    - Batch sizes: the windows of the ordinary order are dealt out one after the other, so many to each batch: none is
      skipped, and none comes twice in an epoch.
    - Difficulty: while competence c < 1, each batch is drawn without replacement from the easiest share c of the
      windows of a fixed grid (see `difficulty`). c(t) = min(1, sqrt(t (1 - c0^2) / T + c0^2)), the square-root
      competence of arXiv 1903.09848; c0 = difficulty_start, T = difficulty_share x steps. From then on the ordinary
      order, from the beginning of its first epoch.
    - Resuming: the next window is the one after those that were dealt out, whatever the batch sizes were and are.

    Attributes:
        ordinary: the stream, and the order of its windows without a curriculum.
        curriculum: the section `train.curriculum`.
        steps: steps of the whole training, which the shares are of.
        scores: difficulty of each window of the grid, shape (W,), if `curriculum.difficulty` isn't none.
        start: where the ordinary order is continued; by default from its beginning.

    Raises:
        AvaError: there is not one finite score for each window, or all scores are the same.
    """

    ordinary: TrainingBatches
    curriculum: CurriculumConfig
    steps: int
    scores: np.ndarray | None = None
    start: Start = Start()

    def __post_init__(self) -> None:
        if self.scores is None:
            return
        name = f"train.curriculum.difficulty = {self.curriculum.difficulty}"
        expected = (count_windows(self.ordinary.tokens, self.ordinary.sequence_length),)
        if self.scores.shape != expected:
            raise AvaError(f"{name}: has scores of shape {self.scores.shape}: must be {expected}, one per window")
        if not np.isfinite(self.scores).all():
            raise AvaError(f"{name}: some scores are not finite: use another reference model, or rarity")
        if self.scores.min() == self.scores.max():
            raise AvaError(f"{name}: all {len(self.scores)} windows are equally hard: use rarity or reference, or none")

    @cached_property
    def lengths(self) -> Stages:
        """Tokens per sequence."""
        early = self.curriculum.sequence_lengths
        return Stages.equal(early, self.ordinary.sequence_length, self.curriculum.sequence_share * self.steps)

    @cached_property
    def sizes(self) -> Stages:
        """Windows per batch, over all ranks."""
        early = self.curriculum.batch_sizes
        return Stages.equal(early, self.ordinary.global_batch_size, self.curriculum.batch_share * self.steps)

    @cached_property
    def drawn_batches(self) -> int:
        """The first batches, whose windows are drawn by difficulty."""
        if self.scores is None or self.curriculum.difficulty_start == 1:
            return 0
        return round(self.curriculum.difficulty_share * self.steps)

    def competence(self, index: int) -> float:
        """Share of the windows, the easiest, that batch `index` draws from."""
        if index >= self.drawn_batches:
            return 1.0
        start = self.curriculum.difficulty_start**2
        return min(1.0, math.sqrt(index * (1 - start) / self.drawn_batches + start))

    def passes(self, first: int, last: int) -> float:
        """Tokens of the batches from `first` up to `last`, that one excluded, as a multiple of those of one epoch."""
        return (self.sizes.total(last) - self.sizes.total(first)) / self.ordinary.windows_per_epoch

    def windows_before(self, index: int) -> int:
        """Windows of the ordinary order before batch `index`, which is not before `start`."""
        first, last = max(self.start.batch, self.drawn_batches), max(index, self.drawn_batches)
        return self.start.windows + max(0, self.sizes.total(last) - self.sizes.total(first))

    def going_on(self, index: int, windows: int) -> CurriculumBatches:
        """The same batches, continued at batch `index` after `windows` windows of the ordinary order."""
        return replace(self, start=Start(index, windows))

    def record(self, index: int) -> dict[str, Any]:
        """For a checkpoint before batch `index`: how many windows were dealt out, and what determines their order."""
        return {"dealt": self.windows_before(index), **self.ordinary.order}

    def resumed(self, index: int, record: Mapping[str, Any]) -> CurriculumBatches:
        """The same batches, continued at batch `index` after the windows in a checkpoint's `record`.

        Another stream begins with its first window. With another sequence length or seed there are other windows: the
        rest of the epoch is unknown: the next one begins.

        Raises:
            IntegrityError: the record is incomplete.
        """
        order, dealt, per_epoch = self.ordinary.order, record.get("dealt"), record.get("windows_per_epoch")
        if order.keys() - record.keys() or type(dealt) is not int or type(per_epoch) is not int:
            raise IntegrityError("the checkpoint doesn't say which windows were dealt out: it can't be gone on from")
        if all(record[name] == value for name, value in order.items()):
            return self.going_on(index, dealt)
        if record["stream"] != order["stream"]:
            log.info("train: begins with the first window: the checkpoint's training split is another one")
            return self.going_on(index, 0)
        epochs = -(-dealt // max(1, per_epoch))
        changed = [name for name in ("sequence_length", "seed") if record[name] != order[name]]
        log.info(
            "train: begins pass %d over the training split: with another %s the rest of the one before can't be told",
            epochs + 1,
            " and ".join(changed),
        )
        return self.going_on(index, epochs * self.ordinary.windows_per_epoch)

    def batch(self, index: int, rank: int = 0, ranks: int = 1, passed_over: int = 0) -> WindowBatch:
        """The batch of optimiser step `index`, from 0; those of all ranks, put together, are the one of a single rank.

        Draws by difficulty move on by `passed_over` batches, after rewinds; the ordinary order is moved on by `start`.

        Its figures are those of what is on: `sequence_length` (tokens), `global_batch_size` (windows over all ranks,
        that is sequences of full length), `competence`, and `difficulty` (mean score of the whole batch; a window off
        the grid is given the score between those of the two windows that it overlaps).

        Raises:
            AvaError: the batch is not a multiple of `ranks`.
        """
        size, length = self.sizes.at(index), self.lengths.at(index)
        if size % ranks:
            key = "curriculum.batch_sizes" if self.curriculum.batch_sizes else "global_batch_size"
            raise AvaError(f"train.{key} = {size}: must be a multiple of the {ranks} ranks")
        share = size // ranks
        if index < self.drawn_batches:
            starts = self._draw(index, size, passed_over)
        else:
            starts = self.ordinary.starts(self.windows_before(index), size)
        figures: dict[str, float] = {}
        if self.curriculum.sequence_lengths:
            figures["sequence_length"] = float(length)
        if self.curriculum.batch_sizes:
            figures["global_batch_size"] = float(size)
        if self.scores is not None:
            figures |= {"competence": self.competence(index), "difficulty": self._mean_score(starts)}
        own = starts[rank * share : (rank + 1) * share]
        cut = (own[:, None] + np.arange(0, self.ordinary.sequence_length, length)).reshape(-1)
        return WindowBatch(_cut(self.ordinary.windows(own), length), cut, figures)

    @cached_property
    def _easiest_first(self) -> np.ndarray:
        """Windows of the grid by score; among equals in a random order, or the first documents would come first."""
        shuffled = self._generator(0, _ORDER).permutation(len(self.scores))  # type: ignore[arg-type]
        return shuffled[np.argsort(self.scores[shuffled], kind="stable")]  # type: ignore[index]

    def _draw(self, index: int, size: int, passed_over: int) -> np.ndarray:
        """Starts of `size` easy windows, shape (size,); each at most once, if there are so many windows at all."""
        windows = len(self._easiest_first)
        pool = min(windows, max(size, math.ceil(self.competence(index) * windows)))
        generator = self._generator(index + passed_over, _DRAW)
        rounds = [generator.choice(pool, min(pool, size - done), replace=False) for done in range(0, size, pool)]
        return self._easiest_first[np.concatenate(rounds)] * self.ordinary.sequence_length

    def _mean_score(self, starts: np.ndarray) -> float:
        scores = self.scores
        assert scores is not None
        return float(np.interp(starts / self.ordinary.sequence_length, np.arange(len(scores)), scores).mean())

    def _generator(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.ordinary.seed, index, purpose])))


def _cut(windows: np.ndarray, length: int) -> np.ndarray:
    """Cut windows (B, S + 1) into (B S / L, L + 1), those of one window one after the other."""
    if windows.shape[1] == length + 1:
        return windows
    parts = np.lib.stride_tricks.sliding_window_view(windows, length + 1, axis=1)[:, ::length]
    return np.ascontiguousarray(parts.reshape(-1, length + 1))


def build_batches(
    split_tokens: np.ndarray,
    boundary_token_id: int,
    config: TrainConfig,
    seed: int,
    difficulty: np.ndarray | None = None,
    stream: str = "",
) -> CurriculumBatches:
    """The training batches that `config` asks for.

    Args:
        split_tokens: the training split's stream, shape (num_tokens,).
        boundary_token_id: the token that ends every document.
        config: the section `train`.
        seed: of offsets, orders and draws.
        difficulty: losses of the windows under a reference model, shape (W,) as from `difficulty.window_losses`, for
            curriculum.difficulty = reference; None: those of a bigram model of the split.
        stream: fingerprint of the stream, for runs that resume another.

    Raises:
        AvaError: the stream is shorter than one window, or the scores can't order the windows.
    """
    kind, length = config.curriculum.difficulty, config.sequence_length
    if difficulty is not None and kind != "reference":
        raise AvaError(f"train.curriculum.difficulty = {kind}: uses no reference model: set it to reference")
    ordinary = TrainingBatches(split_tokens, length, config.global_batch_size, seed, stream)
    scores = difficulty
    if kind == "length":
        scores = length_scores(split_tokens, length, boundary_token_id)
    elif kind == "rarity":
        scores = rarity_scores(split_tokens, length)
    elif kind == "reference" and difficulty is None:
        scores = bigram_scores(split_tokens, length)
    return CurriculumBatches(ordinary, config.curriculum, config.steps, scores)
