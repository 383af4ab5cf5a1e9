"""What a training is trained on and measured by: the text of shards here, conversations in `ava_core.alignment`."""

from __future__ import annotations

from typing import Any, Protocol

from ava_core.data.curriculum import CurriculumBatches, build_batches
from ava_core.data.reencoding import reads
from ava_core.data.shards import ShardedSplit, load_splits_info
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.pretrained import load_pretrained
from ava_core.progress import Progress
from ava_core.training.batch import Batches
from ava_core.training.beginning import Vocabulary
from ava_core.training.difficulty import reference_difficulty
from ava_core.training.objective import Objective, TrainedModel, Validation
from ava_core.training.pretraining import NextToken, StreamBatches
from ava_core.training.request import TrainRequest
from ava_core.training.teacher.batches import TaughtBatches
from ava_core.training.teacher.lessons import prepare_lessons
from ava_core.training.validation import SplitValidation


class Material(Vocabulary, Protocol):
    """What a training is trained on, opened from the shards of its request."""

    @property
    def head(self) -> type[TrainedModel]:
        """The model: the decoder, and what is computed from its last layer."""
        ...

    def objective(self, model: Any) -> Objective[Any]:
        """What is minimised; called once, before memory is planned and the optimiser is made.

        Args:
            model: of the class `head`, which may be prepared for it.
        """
        ...

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the last validation's figures that the training reports."""
        ...

    @property
    def held_out_text(self) -> ShardedSplit | None:
        """The split that benchmarks during training are made from; None: there are none."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens at which generation ends, beside the boundary."""
        ...

    def batches(self, ranks: Ranks, progress: Progress) -> Batches:
        """The batches in their order; called once, before the model is built.

        Raises:
            ConfigError: the settings ask for another order than there can be.
        """
        ...

    def passes(self, steps: int) -> float:
        """How often the first `steps` batches go through what there is."""
        ...

    def validation(self) -> Validation:
        """What is measured between steps."""
        ...

    def corpus(self) -> dict[str, int]:
        """Counts of what the shards hold, for the model's record."""
        ...


class Pretraining:
    """The text of `ava preprocess`, in windows of one stream."""

    head = EnhancedMoEForCausalLM
    figures = ("validation_loss", "validation_bits_per_byte")
    ends = ()

    def __init__(self, request: TrainRequest) -> None:
        self.request, self.config = request, request.train_config
        self.training, self.held_out_text = (
            ShardedSplit.open(request.shards, part) for part in ("train", "validation")
        )
        self._order: CurriculumBatches | None = None

    @property
    def vocab_size(self) -> int:
        return self.training.vocab_size

    @property
    def boundary_token_id(self) -> int:
        return self.training.boundary_token_id

    @property
    def pad_token_id(self) -> int:
        return self.training.pad_token_id

    def objective(self, model: EnhancedMoEForCausalLM) -> NextToken:
        return NextToken(model, self.config)

    def batches(self, ranks: Ranks, progress: Progress) -> Batches:
        self._order = order = self._ordered()
        lessons = prepare_lessons(self.request, self.training, ranks, progress)
        boundary = self.boundary_token_id
        return TaughtBatches(order, boundary, lessons) if lessons else StreamBatches(order, boundary)

    def passes(self, steps: int) -> float:
        assert self._order is not None  # `batches` was called
        return self._order.passes(0, steps)

    def validation(self) -> Validation:
        return SplitValidation(self.held_out_text, self.config)

    def corpus(self) -> dict[str, int]:
        info = load_splits_info(self.request.shards)
        counts = {
            f"{name}_{kind}": getattr(split, f"num_{kind}")
            for name, split in info.splits.items()
            for kind in ("documents", "tokens", "bytes")
        }
        return {**counts, "vocab_size": info.vocab_size}

    def _ordered(self) -> CurriculumBatches:
        split, difficulty = self.training, None
        reference, shards = self.request.reference, self.request.shards
        if reference:
            if self.config.curriculum.difficulty != "reference":
                raise ConfigError("--reference: is used only with train.curriculum.difficulty = reference")
            if not reads(reference, shards, split):
                raise ConfigError(
                    f"--reference {reference}: its tokenizer is not that of {shards}, whose"
                    " tokens it would score: give a model that was trained with the same one"
                )
            model, _ = load_pretrained(EnhancedMoEForCausalLM, reference)
            difficulty = reference_difficulty(
                model,
                split.tokens,
                self.config.sequence_length,
                vocab_size=split.vocab_size,
                boundary_token_id=split.boundary_token_id,
            )
        boundary = split.boundary_token_id
        return build_batches(split.tokens, boundary, self.config, self.request.seed, difficulty, split.fingerprint)
