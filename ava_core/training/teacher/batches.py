"""Batches with a teacher's predictions beside the text. Legend: B = sequences, S = tokens per sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ava_core.losses import TeacherTargets
from ava_core.training.batch import Batch
from ava_core.training.pretraining import StreamBatches, window_batch
from ava_core.training.teacher.predictions import Predictions


@dataclass(frozen=True, kw_only=True, eq=False)
class TaughtBatch(Batch):
    """A batch of text, and what a teacher predicts at each position of it.

    Attributes:
        teacher_ids, teacher_log_probs: (B, S, K) and (B, S, K + 1), as in `TeacherTargets`.
    """

    teacher_ids: Tensor
    teacher_log_probs: Tensor

    @property
    def model_inputs(self) -> dict[str, Any]:
        """What a causal model is called with for it."""
        targets = TeacherTargets(ids_TK=self.teacher_ids, log_probs_TK1=self.teacher_log_probs)
        return {**super().model_inputs, "teacher": targets}


@dataclass(frozen=True)
class TaughtBatches(StreamBatches):
    """The windows of a token stream with a teacher's predictions.

    Attributes:
        predictions: those of the stream.
    """

    predictions: Predictions

    def batch(self, step: int, rank: int = 0, ranks: int = 1, passed_over: int = 0) -> TaughtBatch:
        """As in `CurriculumBatches.batch`."""
        drawn = self.order.batch(step, rank, ranks, passed_over=passed_over)
        text = window_batch(drawn.windows, self.boundary_token_id, drawn.figures)
        targets = self.predictions.read(drawn.starts, text.input_ids.shape[1])
        return TaughtBatch(
            input_ids=text.input_ids,
            labels=text.labels,
            document_ids=text.document_ids,
            figures=text.figures,
            teacher_ids=targets.ids_TK,
            teacher_log_probs=targets.log_probs_TK1,
        )
