"""Distillation: the divergence of the model's predictions from a teacher's (arXiv 1503.02531). Shapes: see
`ava_core.models.shapes`; here K is the teacher's most probable tokens, and K + 1 those and all others together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ava_core.losses.rows import Rows, TeacherTargets, TokenContext


@dataclass(slots=True, kw_only=True)
class Distillation:
    """KL(teacher || model) over the teacher's K most probable tokens and the rest of the vocabulary as one outcome.

    Both are distributions over the same K + 1 outcomes, so the divergence is at least 0, and 0 only where the model
    gives each of them what the teacher does; how the rest is spread is left to the cross-entropy. It is at most the
    divergence over the whole vocabulary (data processing inequality), and that one where K is the whole vocabulary.

    Attributes:
        weight: of this part; with a temperature t it should hold a factor t^2, for gradients fall as 1 / t^2
            (arXiv 1503.02531, section 2.1).
        temperature: divides the model's logits, as it did the teacher's.
    """

    name: str = "teacher_kl"
    weight: float = 1.0
    temperature: float = 1.0

    def candidates(self, labels: Tensor, context: TokenContext) -> TeacherTargets:
        """The targets of `labels`' rows.

        Raises:
            ValueError: the context has none, or of another shape.
        """
        if context.teacher is None:
            raise ValueError(f"loss part {self.name}: needs the teacher's predictions of each batch")
        if context.teacher.ids_TK.shape[:-1] != labels.shape:
            shapes = f"{tuple(context.teacher.ids_TK.shape[:-1])} and {tuple(labels.shape)}"
            raise ValueError(f"loss part {self.name}: predictions and labels = {shapes}: must have one shape")
        return context.teacher.flat()

    def __call__(self, rows: Rows) -> Tensor:
        """(T,), nats. Costs three passes over the logits, two where K is the whole vocabulary."""
        targets = cast(TeacherTargets, rows.candidates[self.name])
        ids_TK = targets.ids_TK.long()
        scaled_TV = rows.logits_TV if self.temperature == 1 else rows.logits_TV / self.temperature
        teacher_TK1 = targets.log_probs_TK1.to(scaled_TV.dtype).exp()
        log_sum_T = scaled_TV.logsumexp(dim=-1)
        log_p_TK = scaled_TV.gather(1, ids_TK) - log_sum_T[:, None]
        cross_T = (teacher_TK1[:, :-1] * log_p_TK).sum(dim=-1)
        if ids_TK.shape[1] < scaled_TV.shape[1]:  # 1 - sum p cancels where the rest is small
            rest_T = scaled_TV.scatter(1, ids_TK, -torch.inf).logsumexp(dim=-1) - log_sum_T
            cross_T = cross_T + teacher_TK1[:, -1] * rest_T
        return (-torch.special.entr(teacher_TK1).sum(dim=-1) - cross_T) * rows.predicted_T
