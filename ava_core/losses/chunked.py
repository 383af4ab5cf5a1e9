"""Output head and token losses in chunks of tokens. Shapes: see `ava_core.models.shapes`.

The logits of a batch are its largest tensor by far (4096 tokens x 8192 entries: 128 MiB in float32, and as
much again for the softmax and the gradient). Here only one chunk of them exists at a time: its gradients are
taken at once, in the forward pass, and only those of the hidden states and of the head's weight are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ava_core import kernels
from ava_core.losses.rows import OfRows, Rows
from ava_core.losses.token import CrossEntropy, LogitZLoss, TokenLoss

CHUNK_TOKENS = 1024
"""Tokens per chunk: large enough for full speed of the products, small enough to stay in a CPU's cache."""


class _ChunkedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        losses: Sequence[TokenLoss],
        chunk: int,
        candidates: Mapping[str, OfRows],
    ) -> tuple[Tensor, Tensor]:
        kind = hidden_TD.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_TD.dtype
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(dtype, torch.float32)
        sums = torch.zeros(len(losses), device=hidden_TD.device, dtype=wide)
        grad_hidden = torch.empty_like(hidden_TD, dtype=dtype) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        hidden, weight = hidden_TD.detach().to(dtype).contiguous(), weight_VD.detach().to(dtype).contiguous()
        compute = _native_chunk if _native_can(hidden, weight, losses) else _reference_chunk
        pieces = {name: found.chunks(len(labels_T), chunk) for name, found in candidates.items()}
        # Autocast would cast the head's inputs again for every chunk.
        with torch.autocast(kind, enabled=False):
            for index, start in enumerate(range(0, hidden.shape[0], chunk)):
                rows = slice(start, start + chunk)
                grad_rows = None if grad_hidden is None else grad_hidden[rows]
                here = {name: chunks[index] for name, chunks in pieces.items()}
                sums += compute(hidden[rows], weight, labels_T[rows], losses, grad_rows, grad_weight, here)
        weights = torch.tensor([loss.weight for loss in losses], device=sums.device, dtype=wide)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtypes = hidden_TD.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(sums)
        return (sums * weights).sum(), sums

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            None if grad_hidden is None else (grad_hidden * grad.to(grad_hidden.dtype)).to(hidden_dtype),
            None if grad_weight is None else (grad_weight * grad).to(weight_dtype),
            None,
            None,
            None,
            None,
        )


def _reference_chunk(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    losses: Sequence[TokenLoss],
    grad_hidden_TD: Tensor | None,
    grad_weight_VD: Tensor | None,
    candidates: Mapping[str, OfRows],
) -> Tensor:
    """Sum of each loss over a chunk's tokens; writes the first gradient and adds to the second."""
    needed = grad_hidden_TD is not None or grad_weight_VD is not None
    with torch.set_grad_enabled(needed):
        logits_TV = F.linear(hidden_TD, weight_VD).detach()
        logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)).requires_grad_(needed)
        rows = Rows(logits_TV=logits_TV, labels_T=labels_T, candidates=candidates)
        parts = torch.stack([loss(rows).sum() for loss in losses])
        weights = torch.tensor([loss.weight for loss in losses], device=parts.device, dtype=parts.dtype)
        total = (parts * weights).sum()
    if needed:
        grad_TV = torch.autograd.grad(total, logits_TV)[0].to(hidden_TD.dtype)
        _write_gradients(grad_TV, hidden_TD, weight_VD, grad_hidden_TD, grad_weight_VD)
    return parts.detach()


def _write_gradients(
    grad_TV: Tensor, hidden_TD: Tensor, weight_VD: Tensor, grad_hidden_TD: Tensor | None, grad_weight_VD: Tensor | None
) -> None:
    if grad_hidden_TD is not None:
        grad_hidden_TD.copy_(grad_TV @ weight_VD)
    if grad_weight_VD is not None:
        grad_weight_VD += grad_TV.T @ hidden_TD


def _native_can(hidden: Tensor, weight: Tensor, losses: Sequence[TokenLoss]) -> bool:
    """Whether the kernels take these tensors and these losses: a cross-entropy, and a z-loss if any."""
    kinds = [type(loss) for loss in losses]
    even = hidden.shape[1] % 2 == 0 and weight.shape[0] % 2 == 0
    if kinds not in ([CrossEntropy], [CrossEntropy, LogitZLoss]):
        return False
    cross_entropy: CrossEntropy = losses[0]  # type: ignore[assignment]
    plain = cross_entropy.weight == 1 and cross_entropy.temperature == 1
    return plain and even and kernels.usable(hidden, weight)


def _native_chunk(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    losses: Sequence[TokenLoss],
    grad_hidden_TD: Tensor | None,
    grad_weight_VD: Tensor | None,
    _candidates: Mapping[str, OfRows],
) -> Tensor:
    """Like `_reference_chunk` with loss and gradient in one pass over the logits; our products don't round those."""
    cross_entropy, *others = losses
    ours = kernels.products_pay()
    nll_T, lse_T, grad_TV = kernels.cross_entropy_and_gradient(
        kernels.head_logits(hidden_TD, weight_VD) if ours else F.linear(hidden_TD, weight_VD).float(),
        labels_T,
        label_smoothing=cross_entropy.label_smoothing,  # type: ignore[attr-defined]
        z_weight=others[0].weight if others else 0.0,
        gradient=grad_hidden_TD is not None or grad_weight_VD is not None,
    )
    if grad_TV is not None:
        write = kernels.head_gradients if ours else _write_gradients
        write(grad_TV, hidden_TD, weight_VD, grad_hidden_TD, grad_weight_VD)
    return torch.stack([nll_T.sum(), *(lse_T.square().sum() for _ in others)])


def chunked_head_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    losses: Sequence[TokenLoss],
    chunk: int = CHUNK_TOKENS,
    candidates: Mapping[str, OfRows] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of the weighted losses of `hidden @ weight.T`, without holding all logits.

    Returns the weighted sum (differentiable, once) and the unweighted sum of each loss (detached). The products follow
    autocast; logits enter the losses in float32 (or wider). `candidates` are what losses need beside logits and
    labels, by name; see `Rows`.
    """
    return _ChunkedHeadLoss.apply(hidden_TD, weight_VD, labels_T, losses, chunk, candidates or {})
