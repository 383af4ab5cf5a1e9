"""Unlikelihood losses, which lower the probability of negative candidates. Shapes: see `ava_core.models.shapes`; N is
candidates, pairs of a row and a token, and W is windows, n-grams of a sequence.

sum over a row's candidates c of -log(1 - p(c)) (arXiv 1908.04319, eq. 4). The parts differ in their candidates; a row's
target is never one. They are found once per batch, without gradients, and are few beside the T x V logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ava_core.losses.rows import Candidates, Rows, TokenContext

PAIRS = 2**22
"""Pairs of windows that are compared at a time; a byte each. Or one window with all before it, if those are more."""


class Unlikelihood:
    """Base of the parts; a subclass finds the candidates."""

    name: str
    weight: float

    def find(self, labels: Tensor, context: TokenContext) -> Candidates:
        """Candidates among `labels.numel()` rows; the rows' targets may be among them."""
        raise NotImplementedError

    @torch.no_grad()
    def candidates(self, labels: Tensor, context: TokenContext) -> Candidates:
        """Candidates of `labels`, (B, S) or (T,), aligned with the logits.

        Raises:
            ValueError: the context lacks what the part needs, or has another shape than the labels.
        """
        return self.find(labels, context).without_targets(labels.reshape(-1))

    def _inputs(self, labels: Tensor, context: TokenContext) -> Tensor:
        if context.inputs_BS is None:
            raise ValueError(f"loss part {self.name}: needs input_ids: inputs_embeds name no tokens")
        if context.inputs_BS.shape != labels.shape:
            shapes = f"{tuple(context.inputs_BS.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"loss part {self.name}: inputs and labels = {shapes}: must have one shape")
        return context.inputs_BS

    def __call__(self, rows: Rows) -> Tensor:
        """(T,), nats. Costs two passes over the logits, which all parts of this kind share."""
        found = cast(Candidates, rows.candidates[self.name])
        loss_T = rows.logits_TV.new_zeros(len(rows.labels_T))
        return loss_T.index_add(0, found.rows_N, rows.unlikelihood(found.rows_N, found.tokens_N))


@dataclass(slots=True, kw_only=True)
class Repetition(Unlikelihood):
    """Against repeating the last token: each row's candidate is its input."""

    name: str = "repetition"
    weight: float = 1.0

    def find(self, labels: Tensor, context: TokenContext) -> Candidates:
        tokens_T = self._inputs(labels, context).reshape(-1)
        return Candidates(rows_N=torch.arange(len(tokens_T), device=tokens_T.device), tokens_N=tokens_T)


@dataclass(slots=True, kw_only=True)
class NgramRepetition(Unlikelihood):
    """Against completing an n-gram that occurred earlier in the document (arXiv 1908.04319, section 5.1: of all tokens
    that occurred, those that would repeat an n-gram).

    Candidates of a row are the tokens that followed earlier occurrences of its last n - 1 tokens. Finding them sorts
    the n-grams of the batch and compares B S^2 / 2 pairs of integers, at most `PAIRS` at a time.
    """

    name: str = "ngram_repetition"
    weight: float = 1.0
    size: int = 4

    def find(self, labels: Tensor, context: TokenContext) -> Candidates:
        inputs_BS, before = self._inputs(labels, context), self.size - 1
        documents_BS = context.document_ids_BS
        if documents_BS is None:
            documents_BS = torch.zeros_like(inputs_BS)
        S = inputs_BS.shape[1]
        if before >= S:
            none = inputs_BS.new_empty(0)
            return Candidates(rows_N=none, tokens_N=none)
        prefixes_BW, whole_BW = _number_windows(inputs_BS, documents_BS, before)
        ngrams_BW, _ = _number_windows(inputs_BS, documents_BS, self.size)
        # A token that followed several times is one candidate. A window that runs into the next document can't be
        # the first of its kind unless it is the last, which nothing comes after.
        first_BW = _first_occurrences(ngrams_BW)
        sequence_N, later_N, earlier_N = _earlier_matches(prefixes_BW, whole_BW, first_BW)
        return Candidates(
            rows_N=sequence_N * S + later_N + before - 1, tokens_N=inputs_BS[sequence_N, earlier_N + before]
        )


@dataclass(slots=True, kw_only=True)
class EarlyEnd(Unlikelihood):
    """-log(1 - p(end)) at every position that doesn't end its document: against documents that end too early."""

    name: str = "early_end"
    weight: float = 1.0
    end_token_id: int

    def find(self, labels: Tensor, context: TokenContext) -> Candidates:
        rows_T = torch.arange(labels.numel(), device=labels.device)
        return Candidates(rows_N=rows_T, tokens_N=torch.full_like(rows_T, self.end_token_id))


def _number_windows(inputs_BS: Tensor, documents_BS: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A number for each window of `size` inputs, equal where sequence, document and tokens are; and whether the window
    lies within one document (padding is none). Both (B, W)."""
    tokens_BWn, documents_BWn = inputs_BS.unfold(1, size, 1), documents_BS.unfold(1, size, 1)
    B, W, _ = tokens_BWn.shape
    sequences_BW1 = torch.arange(B, device=inputs_BS.device)[:, None, None].expand(B, W, 1)
    keys = torch.cat((sequences_BW1, documents_BWn[..., :1], tokens_BWn), dim=-1).flatten(0, 1)
    numbers = torch.unique(keys, dim=0, return_inverse=True)[1]
    whole_BW = (documents_BWn == documents_BWn[..., :1]).all(dim=-1) & (documents_BWn[..., 0] >= 0)
    return numbers.view(B, W), whole_BW


def _earlier_matches(prefixes_BW: Tensor, whole_BW: Tensor, first_BW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sequence, later and earlier window of all pairs with one number, the later within one document and the earlier
    (of all but the last) in `first_BW`. Int64 (N,) each, sorted.

    Blocks of whole sequences, or of the later windows of one, so that memory doesn't grow with S^2.
    """
    B, W = prefixes_BW.shape
    rows = min(W, max(1, PAIRS // W))
    sequences = max(1, PAIRS // W**2) if rows == W else 1
    found = []
    for b in range(0, B, sequences):
        for start in range(0, W, rows):
            later = slice(start, min(start + rows, W))
            block, earlier = slice(b, b + sequences), slice(0, later.stop - 1)
            match_BWW = prefixes_BW[block, later, None] == prefixes_BW[block, None, earlier]
            match_BWW &= whole_BW[block, later, None]
            match_BWW &= first_BW[block, None, earlier]
            pairs_N3 = match_BWW.tril_(start - 1).nonzero()
            found.append(pairs_N3 + pairs_N3.new_tensor([b, start, 0]))
    sequence_N, later_N, earlier_N = torch.cat(found).unbind(1)
    return sequence_N, later_N, earlier_N


def _first_occurrences(numbers_BW: Tensor) -> Tensor:
    """Whether a number hasn't occurred before, bool."""
    numbers = numbers_BW.reshape(-1)
    positions = torch.arange(len(numbers), device=numbers.device)
    first = torch.full_like(positions, len(numbers)).scatter_reduce(0, numbers, positions, "amin")
    return (first[numbers] == positions).view(numbers_BW.shape)
