"""Logits by row, one per predicted token, and what several losses need of them. Shapes: see `ava_core.models.shapes`;
here N is candidates, pairs of a row and a token, and K a teacher's most probable tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100
"""Label of a position that has no loss, as everywhere in Transformers."""


@dataclass(slots=True, kw_only=True)
class TeacherTargets:
    """A teacher's distribution over its K most probable tokens and the rest of the vocabulary, at each position.

    Attributes:
        ids_TK: the tokens, integers, distinct within a row; (..., K).
        log_probs_TK1: log-probabilities of the tokens and, last, of the rest, at the temperature of the loss; they sum
            to 1 in each row. -inf for a rest of none. (..., K + 1), float32.
    """

    ids_TK: Tensor
    log_probs_TK1: Tensor

    def flat(self) -> TeacherTargets:
        """The same with one leading axis."""
        return TeacherTargets(ids_TK=self.ids_TK.flatten(0, -2), log_probs_TK1=self.log_probs_TK1.flatten(0, -2))

    def chunks(self, rows: int, chunk: int) -> list[TeacherTargets]:
        """Cut `rows` rows into chunks."""
        parts = (slice(start, start + chunk) for start in range(0, rows, chunk))
        return [TeacherTargets(ids_TK=self.ids_TK[p], log_probs_TK1=self.log_probs_TK1[p]) for p in parts]


@dataclass(slots=True, kw_only=True)
class TokenContext:
    """The inputs, for parts of the loss that depend on more than logits and labels.

    Attributes:
        inputs_BS: the token at each position, whose label is the next one; None if only embeddings are known.
        document_ids_BS: document of each input, equal numbers being neighbours; negative for padding. None: one
            document per sequence.
        teacher: what a teacher predicts at each position, (B, S, ...); None without one.
    """

    inputs_BS: Tensor | None = None
    document_ids_BS: Tensor | None = None
    teacher: TeacherTargets | None = None


class OfRows(Protocol):
    """What a part of the loss needs of each row beside its logits and its label."""

    def chunks(self, rows: int, chunk: int) -> Sequence[OfRows]:
        """Cut `rows` rows into chunks, numbered from 0 in each."""
        ...


@dataclass(slots=True, kw_only=True)
class Candidates:
    """Negative tokens of some rows, as sparse pairs: none occurs twice, and rows ascend.

    Attributes:
        rows_N: int64, indices of rows.
        tokens_N: int64, a token of the vocabulary for each of them.
    """

    rows_N: Tensor
    tokens_N: Tensor

    def without_targets(self, labels_T: Tensor) -> Candidates:
        """Those that are neither their row's target nor at a row without one."""
        targets_N = labels_T[self.rows_N]
        kept_N = (targets_N != self.tokens_N) & (targets_N != IGNORE_INDEX)
        return Candidates(rows_N=self.rows_N[kept_N], tokens_N=self.tokens_N[kept_N])

    def chunks(self, rows: int, chunk: int) -> list[Candidates]:
        """Cut `rows` rows into chunks, numbered from 0 in each."""
        starts = range(0, rows, chunk)
        bounds = torch.tensor([*starts, rows], device=self.rows_N.device)
        ends = torch.searchsorted(self.rows_N, bounds).tolist()  # waits for the device once
        return [
            Candidates(rows_N=self.rows_N[low:high] - start, tokens_N=self.tokens_N[low:high])
            for start, low, high in zip(starts, ends, ends[1:], strict=False)
        ]


@dataclass(kw_only=True)
class Rows:
    """Predictions of T tokens; what several losses need of them is computed once, on demand.

    Attributes:
        logits_TV: float32 or wider.
        labels_T: the targets, `IGNORE_INDEX` where there is none.
        candidates: what parts need beside them, by the name of the part that asked for it.

    Raises:
        IndexError: a label is no token of the vocabulary. PyTorch's cross-entropy refuses it too, but not every part
            has one; on an accelerator it is left to that, whose kernel asserts it, for looking would wait for it.
    """

    logits_TV: Tensor
    labels_T: Tensor
    candidates: Mapping[str, OfRows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels_T.device.type != "cpu" or torch.compiler.is_compiling():
            return
        vocab_size = self.logits_TV.shape[-1]
        wrong_T = ((self.labels_T < 0) & self.predicted_T) | (self.labels_T >= vocab_size)
        if wrong_T.any():
            first = int(self.labels_T[wrong_T][0])
            raise IndexError(
                f"label = {first}: must be {IGNORE_INDEX}, or at least 0 and less than the vocabulary, {vocab_size}"
            )

    @cached_property
    def predicted_T(self) -> Tensor:
        """Whether there is a target, bool."""
        return self.labels_T != IGNORE_INDEX

    @cached_property
    def log_sum_T(self) -> Tensor:
        """Log-partition: logsumexp of each row's logits."""
        return self.logits_TV.logsumexp(dim=-1)

    @cached_property
    def _top_T1(self) -> Tensor:
        return self.logits_TV.argmax(dim=-1, keepdim=True)

    @cached_property
    def _rest_T(self) -> Tensor:
        """logsumexp of each row's logits without the largest."""
        return self.logits_TV.scatter(1, self._top_T1, -torch.inf).logsumexp(dim=-1)

    def unlikelihood(self, rows_N: Tensor, tokens_N: Tensor) -> Tensor:
        """-log(1 - p) of tokens, (N,), in nats: finite, and with gradients of at most 1, however near p is to 1.

        Only a row's largest logit can have p > 1/2. For it 1 - p is the sum of the others, taken as such:
        -log(1 - p) = log(1 + exp(logit - rest)). For all others log1p(-p) has nothing to cancel. Costs two passes over
        the logits for all calls together.
        """
        logits_N = self.logits_TV[rows_N, tokens_N]
        top_N = self._top_T1[rows_N, 0] == tokens_N
        of_top_N = -F.logsigmoid(self._rest_T[rows_N] - logits_N)
        # Where the other branch is chosen, something harmless: nan times 0 would be the gradient of log1p(-1).
        log_p_N = torch.where(top_N, -1.0, logits_N - self.log_sum_T[rows_N])
        return torch.where(top_N, of_top_N, -torch.log1p(-log_p_N.exp()))
