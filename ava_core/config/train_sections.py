"""The sections inside `train`, but for the loss: curriculum, regularisation, guard, average of the weights, rates."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from ava_core.config.section import LARGEST, Fraction, Positive, PositiveNumber, Section, Text, Weight


class RateGroup(Section):
    """Parameters whose learning rate is a multiple of what it would be."""

    pattern: Text
    """Of their names, as in `freeze`."""
    multiplier: PositiveNumber
    """What their rate is multiplied with; to leave parameters as they are, use `freeze`."""


class CurriculumConfig(Section):
    """What the model sees first. Every schedule is a function of the step and is written to the history."""

    sequence_lengths: list[Annotated[int, Field(ge=8, le=LARGEST)]] = []
    """Shorter sequences to begin with, in this order, each for an equal part of `sequence_share`; each divides the next
    and the last divides train.sequence_length. A batch keeps its number of tokens: it holds more sequences instead."""
    sequence_share: Fraction = 0.5
    """Share of the steps after which sequences have their full length."""
    batch_sizes: list[Positive] = []
    """Smaller batches to begin with, in sequences, multiples of train.micro_batch_size, each for an equal part of
    `batch_share`."""
    batch_share: Fraction = 0.5
    """Share of the steps after which batches have their full size."""
    difficulty: Literal["none", "length", "rarity", "reference"] = "none"
    """Order of windows, easy ones first: by the length of their documents, by the rarity of their tokens, or by the
    loss of a reference model (the one given with --reference, else a bigram model of the training split)."""
    difficulty_start: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Share of windows, the easiest, that the first step draws from (competence, arXiv 1903.09848)."""
    difficulty_share: Fraction = 0.5
    """Share of the steps after which all windows are drawn from."""

    def require_fit(self, sequence_length: int, global_batch_size: int, unit: int) -> None:
        """Refuse lengths that don't divide each other, and batches that don't grow in multiples of `unit` sequences.

        Raises:
            ValueError: they do that.
        """
        for shorter, longer in pairwise([*self.sequence_lengths, sequence_length]):
            if longer % shorter or shorter == longer:
                raise ValueError(
                    f"curriculum.sequence_lengths = {self.sequence_lengths}: each must divide the next, and"
                    f" the last one sequence_length = {sequence_length}; {shorter} doesn't divide {longer}"
                )
        sizes = [*self.batch_sizes, global_batch_size]
        if any(size % unit for size in sizes) or any(a >= b for a, b in pairwise(sizes)):
            raise ValueError(
                f"curriculum.batch_sizes = {self.batch_sizes}: must grow up to global_batch_size"
                f" = {global_batch_size} in multiples of micro_batch_size x processes = {unit}"
            )


class TeacherConfig(Section):
    """A finished model whose predictions are imitated beside the text (distillation, arXiv 1503.02531)."""

    model: Text | None = None
    """The teacher: a model folder, or a registered one as models:/NAME@ALIAS or models:/NAME/VERSION, of any
    architecture, with the tokenizer of the shards; null: none. The same as --teacher."""
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the divergence from the teacher (KL, times the square of `temperature`) in the loss; what is left is the
    cross-entropy's."""
    temperature: PositiveNumber = 1.0
    """Divides the logits of both in the divergence: above 1 the teacher's smaller probabilities count more."""
    top_k: Positive = 32
    """Tokens whose probabilities are kept of each of the teacher's predictions, the most probable ones; all others are
    one outcome more. They take 4 bytes each on the disk, once for all trainings with this teacher and these shards."""


class RegularizationConfig(Section):
    """Dropout, weight decay and router noise that follow the gap between validation and training loss."""

    adaptive: bool = False
    """Drive them; False: model.dropout, train.weight_decay and model.router_jitter stay as they are."""
    target_gap: Weight = 0.05
    """Nats per token of validation loss above training loss that are left alone."""
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """Largest change of the strength, which lies in [0, 1], at one evaluation."""
    max_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Dropout at strength 1; at strength 0 it is model.dropout."""
    max_weight_decay: Weight = 0.2
    """Weight decay at strength 1; at strength 0 it is train.weight_decay. If that is 0, it stays 0."""
    max_router_jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Router noise at strength 1; at strength 0 it is model.router_jitter."""


class GuardConfig(Section):
    """What happens when the loss is not finite, or spikes."""

    policy: Literal["stop", "skip", "rewind"] = "stop"
    """`stop`: end with an error that names the layer; `skip`: leave out the update of that step; `rewind`: go back to
    the last good checkpoint, pass over the batches since, and lower the rate."""
    spike_deviations: PositiveNumber | None = None
    """Standard deviations above the mean of recent losses from which a step counts as a spike; null: only nan and
    infinity count."""
    window: Annotated[int, Field(ge=8, le=10_000_000)] = 64
    """Steps whose losses the mean and the deviation are taken over."""
    lower_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Factor on the learning rate after each rewind."""
    max_events: Positive = 10
    """Skipped steps or rewinds after which the training ends with an error."""


class EmaConfig(Section):
    """Exponential moving average of the weights."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of the average that stays at each update; null: no average. Validation and the final model use it."""
    every: Positive = 1
    """Steps between updates."""
