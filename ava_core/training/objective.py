"""What a training minimises, and what it measures: the interfaces between the loop and one kind of training.

To add one (rewards of pairs, preferences, rollouts), write an `Objective` for the engine, and `Batches` and a
`Validation` for the trainer; see `ava_core.training.pretraining` for those of pretraining.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from ava_core.models import EnhancedMoEForCausalLM, EnhancedMoEForSequenceClassification, RoutingStatistics
from ava_core.training.batch import Batch

BatchType = TypeVar("BatchType", bound=Batch, contravariant=True)
TrainedModel = EnhancedMoEForCausalLM | EnhancedMoEForSequenceClassification
"""The decoder with the head that an objective needs: over the vocabulary, or scores of whole sequences."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectiveLoss:
    """Attributes:
    total: scalar to differentiate, a mean over the terms of a micro-batch; `auxiliary` is part of it.
    auxiliary: scalar, what the routers add to it (`aux_loss` of the model's output).
    parts: what the history says of it, by name, detached; means over the terms. `train_loss` is the one that guard,
        learning-rate search and reports judge the training by.
    routing: what each layer's router did in the pass that is trained.
    """

    total: Tensor
    auxiliary: Tensor
    parts: dict[str, Tensor]
    routing: tuple[RoutingStatistics, ...]


class Objective(Protocol[BatchType]):
    """What the engine minimises.

    The engine makes a mean over the terms of the whole global batch of the means that `loss` gives, however they are
    distributed over micro-batches and ranks.
    """

    def count(self, batch: BatchType) -> int:
        """Terms that the loss of `batch` is a mean of: labelled tokens, or pairs."""
        ...

    def loss(self, model: nn.Module, batch: BatchType) -> ObjectiveLoss:
        """The loss of a micro-batch.

        Args:
            model: the one that is trained, to be called as such: DeepSpeed's hooks are around it.
            batch: on the model's device.
        """
        ...


class Validation(Protocol):
    """What the trainer measures between steps."""

    def measure(self, model: Any, *, whole: bool) -> dict[str, float]:
        """Figures for the history, whose names begin with `validation_`; one is `validation_loss`, by which schedule,
        early stopping and the best checkpoint judge: the lower the better.

        Args:
            model: in any mode; it is left in evaluation mode.
            whole: measure all that is held out, or a part of it.
        """
        ...
