"""Dispatch of tokens to rows grouped by expert (permute), and their weighted combination (unpermute). Shapes: see
`shapes`.

Both directions are gathers, forward and backward: the permutation and its inverse are known, so no scatter
with colliding indices is needed and the result is the same on every run, on GPUs too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Permutation:
    """Occupied slots of FFN experts, sorted by expert, stable in token order.

    Attributes:
        token_R: token of each row.
        slot_R: index of each row's slot in the flattened (T, K).
        row_TK: row of each slot; 0 in slots that have none.
        occupied_TK: bool, which slots have a row.
        counts_N: rows of each FFN expert, int64, padding rows included.
        real_R: bool, False for padding rows (they repeat some token; nothing that comes of them is used); None if there
            are none.
    """

    token_R: Tensor
    slot_R: Tensor
    row_TK: Tensor
    occupied_TK: Tensor
    counts_N: Tensor
    real_R: Tensor | None = None

    def padded(self, multiple: int) -> Permutation:
        """The same rows, each expert's number of them rounded up to a multiple; experts without rows stay so."""
        counts_N = -(-self.counts_N // multiple) * multiple
        shift_N = (counts_N - self.counts_N).cumsum(0) - (counts_N - self.counts_N)
        row_R = torch.arange(self.slot_R.numel(), device=self.slot_R.device)
        row_R = row_R + shift_N.repeat_interleave(self.counts_N)
        slot_R = self.slot_R.new_zeros(int(counts_N.sum()))
        slot_R[row_R] = self.slot_R
        real_R = torch.zeros_like(slot_R, dtype=torch.bool)
        real_R[row_R] = True
        moved_TK = row_R[self.row_TK] if row_R.numel() else self.row_TK
        return Permutation(
            token_R=slot_R // self.row_TK.shape[1],
            slot_R=slot_R,
            row_TK=moved_TK.masked_fill(~self.occupied_TK, 0),
            occupied_TK=self.occupied_TK,
            counts_N=counts_N,
            real_R=real_R,
        )


def sort_by_expert(expert_ids_TK: Tensor, used_TK: Tensor, num_ffn_experts: int, *, keep_unused: bool) -> Permutation:
    """Sort the slots by expert, once for the whole layer.

    `keep_unused` keeps rows for the other slots at the end, R = T * K, so that no size depends on data (which would
    synchronise host and GPU); otherwise R is the number of occupied slots.
    """
    T, K = expert_ids_TK.shape
    occupied_TK = used_TK & (expert_ids_TK < num_ffn_experts)
    # One-byte keys: the sort is a few times as fast as on int64.
    key_dtype = torch.uint8 if num_ffn_experts < 256 else torch.int32
    keys = torch.where(occupied_TK, expert_ids_TK, num_ffn_experts).to(key_dtype).reshape(-1)
    sorted_keys, slot_R = keys.sort(stable=True)
    bounds = torch.arange(num_ffn_experts + 1, device=keys.device, dtype=key_dtype)
    starts = torch.searchsorted(sorted_keys, bounds)
    row_TK = torch.empty_like(slot_R)
    row_TK[slot_R] = torch.arange(T * K, device=keys.device)
    row_TK = row_TK.view(T, K).masked_fill_(~occupied_TK, 0)
    if not keep_unused:
        slot_R = slot_R[: int(starts[-1])]
    return Permutation(
        token_R=slot_R // K,
        slot_R=slot_R,
        row_TK=row_TK,
        occupied_TK=occupied_TK,
        counts_N=starts.diff(),
    )


def _gather_sum(rows_RD: Tensor, weights_TK: Tensor, p: Permutation, dtype: torch.dtype) -> Tensor:
    """sum_k weights[t, k] * rows[row[t, k]], (T, D)."""
    T, K = p.row_TK.shape
    out_TD = torch.zeros(T, rows_RD.shape[1], dtype=dtype, device=rows_RD.device)
    if rows_RD.shape[0] == 0:
        return out_TD
    for k in range(K):
        # where, not times zero: an unoccupied slot points at a row that may be uninitialised (NaN)
        term = rows_RD[p.row_TK[:, k]].to(dtype) * weights_TK[:, k, None].to(dtype)
        # Not in place: compiled by PyTorch 2.11, a forward that adds in place has no gradient, without a word.
        out_TD = out_TD + torch.where(p.occupied_TK[:, k, None], term, 0)
    return out_TD


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, p: Permutation) -> Tensor:
        ctx.permutation = p
        return x_TD[p.token_R]

    @staticmethod
    def backward(ctx, grad_RD: Tensor):
        p = ctx.permutation
        wide = torch.promote_types(grad_RD.dtype, torch.float32)
        return _gather_sum(grad_RD, p.occupied_TK, p, wide).to(grad_RD.dtype), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_RD: Tensor, weights_TK: Tensor, p: Permutation) -> Tensor:
        ctx.save_for_backward(y_RD, weights_TK)
        ctx.permutation = p
        return _gather_sum(y_RD, weights_TK, p, weights_TK.dtype)

    @staticmethod
    def backward(ctx, grad_TD: Tensor):
        y_RD, weights_TK = ctx.saved_tensors
        p = ctx.permutation
        grad_RD = grad_TD[p.token_R]
        weight_R = weights_TK.reshape(-1)[p.slot_R]
        if p.real_R is not None:
            weight_R = weight_R * p.real_R
        grad_y = (grad_RD * weight_R[:, None]).to(y_RD.dtype)
        dot_R = (grad_RD * y_RD).sum(dim=-1).to(weights_TK.dtype)
        # where, as in _gather_sum
        grad_weights = torch.where(p.occupied_TK, dot_R[p.row_TK], 0) if len(dot_R) else torch.zeros_like(weights_TK)
        return grad_y, grad_weights, None


def dispatch(x_TD: Tensor, permutation: Permutation) -> Tensor:
    """Rows (R, D) of the tokens, in the order of the permutation."""
    return _Dispatch.apply(x_TD, permutation)


def combine(y_RD: Tensor, weights_TK: Tensor, permutation: Permutation) -> Tensor:
    """Weighted sum (T, D), in float32, of each token's rows."""
    return _Combine.apply(y_RD, weights_TK, permutation)
