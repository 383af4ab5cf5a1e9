"""Attention in blocks of queries, so that of long sequences nothing of sequence x sequence is ever held.

What the backward pass needs of a block is computed again in it, as FlashAttention does (arXiv 2205.14135); of short
sequences it is kept. `mask` is as in `masks`; shapes: see `shapes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ava_core.config.attention import KEPT_PROBABILITIES
from ava_core.models.masks import dense_mask

QUERIES = (32, 256)
"""Queries of one block of `attend_by_products`, at least and at most."""
SCORES = 2**21
"""Scores of one block of it at most, but for the fewest queries of one sequence."""
KEY_RANGES = 8
"""Parts of a sequence, of which a block's keys are those that any of its queries looks into."""
FUSED_QUERIES = 512
"""Queries of one block of `attend_fused`, whose mask alone has queries x keys."""


def attend_fused(q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor, first_BS: Tensor) -> Tensor:
    """PyTorch's fused attention (B, H, S, A) with a mask that says where each query begins to look."""
    S = q_BHSA.shape[2]
    if S <= FUSED_QUERIES:
        return _fused_block(q_BHSA, k_BGSA, v_BGSA, first_BS, 0, 0)
    run = _fused_block
    if torch.is_grad_enabled():  # or else autograd would keep the masks
        run = partial(checkpoint, _fused_block, use_reentrant=False, preserve_rng_state=False)
    parts = []
    for start in range(0, S, FUSED_QUERIES):
        end = min(start + FUSED_QUERIES, S)
        first, low = first_BS[:, start:end], _lowest(first_BS[:, start:end])
        keys = slice(low, end)
        parts.append(run(q_BHSA[:, :, start:end], k_BGSA[:, :, keys], v_BGSA[:, :, keys], first, start, low))
    return torch.cat(parts, dim=2)


def attend_by_products(q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor, mask: Tensor | None) -> Tensor:
    """Attention (B, H, S, A) as two batched matrix products and a softmax, of tensors of one type on a CPU."""
    return _ByProducts.apply(q_BHSA, k_BGSA, v_BGSA, mask)


def _fused_block(q_BHQA: Tensor, k_BGKA: Tensor, v_BGKA: Tensor, first_BQ: Tensor, start: int, low: int) -> Tensor:
    mask = dense_mask(first_BQ, start, low, low + k_BGKA.shape[2])
    return sdpa(q_BHQA, k_BGKA, v_BGKA, mask)


def sdpa(q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's fused attention (B, H, S, A); `mask` None or boolean."""
    grouped = q_BHSA.shape[1] != k_BGSA.shape[1]
    if grouped and not _kernel_groups_heads(q_BHSA, mask):
        repeats = q_BHSA.shape[1] // k_BGSA.shape[1]
        k_BGSA, v_BGSA = (t.repeat_interleave(repeats, dim=1) for t in (k_BGSA, v_BGSA))
        grouped = False
    # One query may look at the whole cache, which the causal flag (aligned upper-left) would forbid.
    causal = mask is None and q_BHSA.shape[2] > 1
    return F.scaled_dot_product_attention(q_BHSA, k_BGSA, v_BGSA, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def _kernel_groups_heads(q_BHSA: Tensor, mask: Tensor | None) -> bool:
    """Whether PyTorch's fused kernels take fewer key/value heads than query heads (`enable_gqa`).

    On a CPU it does, and saves the copies: 1.1 to 1.2 times as fast, 1.8 times for one token against a cache. On a
    GPU only FlashAttention does, which has neither masks nor float32; anything else would fall back to the
    unfused path.
    """
    if q_BHSA.device.type == "cpu":
        return True
    return mask is None and q_BHSA.dtype in (torch.float16, torch.bfloat16)


class _Block:
    """Some queries of some sequences, with the keys that they may look at.

    Its products have one matrix per sequence and key/value head, with a row for each query of each of its query heads.
    """

    def __init__(self, tensors: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, rows: slice, queries: slice):
        q_BHSA, k_BGSA, v_BGSA = tensors
        self.rows, self.queries = rows, queries
        if mask is not None and mask.shape[0] > 1:
            mask = mask[rows]
        if mask is not None and mask.dim() == 4:
            self.keys, shown = slice(0, k_BGSA.shape[2]), mask[:, :, queries]
        else:
            S = k_BGSA.shape[2]
            first = torch.zeros(1, queries.stop - queries.start) if mask is None else mask[:, queries]
            # Whole ranges: oneDNN keeps code for each size of a product that it meets, near a megabyte.
            step = -(-S // KEY_RANGES)
            self.keys = slice(_lowest(first) // step * step, min(S, -(-queries.stop // step) * step))
            shown = dense_mask(first, queries.start, self.keys.start, self.keys.stop)
        sees = shown.any(dim=-1, keepdim=True)
        self._blind = None if sees.all() else ~sees
        lowest = torch.finfo(q_BHSA.dtype).min
        self._bias = torch.zeros(shown.shape, dtype=q_BHSA.dtype).masked_fill_(~shown, lowest)
        self.k, self.v = self.of_keys(k_BGSA), self.of_keys(v_BGSA)
        self.q = self.of_queries(q_BHSA)
        self.scale = self.q.shape[-1] ** -0.5

    def of_queries(self, x_BHSA: Tensor) -> Tensor:
        return x_BHSA[self.rows, :, self.queries].reshape(self.k.shape[0], -1, x_BHSA.shape[-1])

    def of_keys(self, x_BGSA: Tensor) -> Tensor:
        return x_BGSA[self.rows, :, self.keys].flatten(0, 1)

    def write(self, product: Tensor, to_BHSA: Tensor) -> None:
        part = to_BHSA[self.rows, :, self.queries]
        part.copy_(product.view(part.shape))

    def add(self, product: Tensor, to_BGSA: Tensor) -> None:
        part = to_BGSA[self.rows, :, self.keys]
        part.add_(product.view(part.shape))

    def probabilities(self) -> Tensor:
        scores = self.q.new_empty(*self.q.shape[:2], self.k.shape[1])
        by_query = self.rows.stop - self.rows.start, -1, *self._bias.shape[2:]
        scores.view(by_query).copy_(self._bias)
        p = scores.baddbmm_(self.q, self.k.mT, alpha=self.scale).softmax(dim=-1)
        if self._blind is not None:
            p.view(by_query).masked_fill_(self._blind, 0)
        return p


class _ByProducts(torch.autograd.Function):
    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx, q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor, mask: Tensor | None) -> Tensor:
        tensors = q_BHSA, k_BGSA.contiguous(), v_BGSA.contiguous()
        out = torch.empty_like(q_BHSA)
        kept = []
        for block in _blocks(tensors, mask):
            p = block.probabilities()
            block.write(torch.bmm(p, block.v), out)
            if k_BGSA.shape[2] <= KEPT_PROBABILITIES:
                kept.append(p)
        ctx.save_for_backward(*tensors, mask, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, grad_BHSA: Tensor):  # type: ignore[override]
        q, k, v, mask, *kept = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros(t.shape, dtype=torch.float32) for t in (k, v))  # sums over blocks
        for i, block in enumerate(_blocks((q, k, v), mask)):
            grad, p = block.of_queries(grad_BHSA), kept[i] if kept else block.probabilities()
            block.add(torch.bmm(p.mT, grad), grad_v)
            scores = torch._softmax_backward_data(torch.bmm(grad, block.v.mT), p, -1, p.dtype)
            block.write(_product(scores, block.k, block.scale), grad_q)
            block.add(_product(scores.mT, block.q, block.scale), grad_k)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None


def _blocks(tensors: tuple[Tensor, Tensor, Tensor], mask: Tensor | None) -> Iterator[_Block]:
    """As many queries and sequences at once as `SCORES` allows."""
    B, H, S, _ = tensors[0].shape
    least, most = QUERIES
    scores = H * tensors[1].shape[2]  # of one query
    queries = min(S, max(least, min(most, SCORES // scores)))
    sequences = max(1, SCORES // (scores * queries))
    for row in range(0, B, sequences):
        for query in range(0, S, queries):
            yield _Block(tensors, mask, slice(row, min(row + sequences, B)), slice(query, min(query + queries, S)))


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale a b, rounded once."""
    return a.new_empty(*a.shape[:2], b.shape[2]).baddbmm_(a, b, beta=0, alpha=scale)


def _lowest(first_BS: Tensor) -> int:
    """The first position that any query looks at; 0 where it would cost a wait to know it."""
    if first_BS.device.type != "cpu" or torch.compiler.is_compiling():
        return 0
    return int(first_BS.min())
