"""Repair after experts were removed: least squares in closed form, layer by layer, on calibration text. Shapes: see
`ava_core.models.shapes`; here R is the rows of the tokens that chose one expert.

- Gates: with gating residuals a gate gets the previous gate's logits, of which some are gone. The remaining ones
  predict them, G_removed = B G_kept with B fitted on the original model's logits, and what a removed logit did is added
  to the kept columns: W_g,kept + W_g,removed B.
- Experts: the output of a mixture is linear in each expert's `down_proj`. What the original layer gave the same text
  and the pruned one doesn't is fitted by the change of one `down_proj` after the other (ridge regression; each is a
  block of a Gauss-Seidel sweep, so the error on the text never grows). A layer is fitted on what the repaired ones
  before give it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.experts import swiglu
from ava_core.models.moe import MoELayer
from ava_core.models.routing import Routing
from ava_core.remaking.calibration import CalibrationText

RIDGE = 0.1
"""What is added to the diagonal of each regression, as a share of its mean."""


@dataclass(frozen=True)
class _Seen:
    """What a mixture did with the calibration text.

    Attributes:
        x_TD, out_TD: its input and output.
        logits: of its gate, (T, num_logits).
        ids_TK, weights_TK: chosen experts and their gate values, 0 where a slot is unused.
    """

    x_TD: Tensor
    out_TD: Tensor
    logits: Tensor
    ids_TK: Tensor
    weights_TK: Tensor


@torch.no_grad()
def repair(
    original: EnhancedMoEForCausalLM,
    pruned: EnhancedMoEForCausalLM,
    kept: Sequence[Sequence[int]],
    text: CalibrationText,
    advance: Callable[[int], None],
) -> None:
    """Change the gates' residuals and the experts' `down_proj` of `pruned` so that its layers give what the original's
    give.

    Args:
        original: the model that experts were removed from.
        pruned: what is left of it, changed in place.
        kept: of each layer, which columns of the original's gate are left, in their order.
        text: to fit on.
        advance: told how many layers are done.
    """
    before: _Seen | None = None
    for index, layer in enumerate(pruned.model.layers):
        wanted = _look(original, index, text)
        residual = layer.moe.gate.residual_weight
        if residual is not None and before is not None:
            whole = original.model.layers[index].moe.gate.residual_weight
            assert whole is not None
            residual.copy_(_reduced(whole[list(kept[index])], before.logits, kept[index - 1]))
        _fit_experts(layer.moe, _look(pruned, index, text), wanted.out_TD)
        before = wanted
        advance(index + 1)


def _reduced(weight: Tensor, logits: Tensor, kept: Sequence[int]) -> Tensor:
    """Columns `kept` of `weight`, with what the others did as far as the kept logits tell it."""
    removed = [column for column in range(weight.shape[1]) if column not in set(kept)]
    given, gone = logits[:, list(kept)].double(), logits[:, removed].double()
    predicted = _ridge(given, gone)  # (kept, removed)
    return weight[:, list(kept)] + (weight[:, removed].double() @ predicted.T).to(weight.dtype)


def _fit_experts(moe: MoELayer, seen: _Seen, wanted_TD: Tensor) -> None:
    """Bring the mixture's output on `seen` nearer to `wanted_TD`, one expert after the other."""
    error_TD = (wanted_TD - seen.out_TD).double()
    for expert in range(moe.experts.down_proj.shape[0]):
        token_R, slot_R = ((seen.ids_TK == expert) & (seen.weights_TK > 0)).nonzero(as_tuple=True)
        if not len(token_R):
            continue
        hidden_RF = swiglu(F.linear(seen.x_TD[token_R], moe.experts.gate_up_proj[expert]))
        given_RF = (hidden_RF * seen.weights_TK[token_R, slot_R, None]).double()
        change_FD = _ridge(given_RF, error_TD[token_R])
        error_TD[token_R] -= given_RF @ change_FD
        moe.experts.down_proj[expert] += change_FD.T.to(moe.experts.down_proj.dtype)


def _ridge(given: Tensor, wanted: Tensor) -> Tensor:
    """The matrix that makes `wanted` (n, m) of `given` (n, k) with the least squared error and size, (k, m)."""
    gram = given.T @ given
    size = gram.diagonal().mean()
    if size == 0:
        return torch.zeros(given.shape[1], wanted.shape[1], dtype=given.dtype)
    gram.diagonal().add_(RIDGE * size)
    return torch.linalg.solve(gram, given.T @ wanted)


class _EnoughError(Exception):
    """Ends a pass after the layer that is looked at."""


def _look(model: EnhancedMoEForCausalLM, index: int, text: CalibrationText) -> _Seen:
    """What the mixture of layer `index` does with the text."""
    pieces: list[_Seen] = []

    def keep(_moe: object, arguments: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Routing]) -> None:
        out_BSD, logits, routing = output
        weights_TK = routing.weights_TK * routing.used_TK
        pieces.append(
            _Seen(arguments[0].flatten(0, 1), out_BSD.flatten(0, 1), logits, routing.expert_ids_TK, weights_TK)
        )
        raise _EnoughError

    handle = model.model.layers[index].moe.register_forward_hook(keep)
    try:
        for inputs in text.batches():
            try:
                model.model(**inputs, use_cache=False)
            except _EnoughError:
                continue
    finally:
        handle.remove()
    fields = zip(*((p.x_TD, p.out_TD, p.logits, p.ids_TK, p.weights_TK) for p in pieces), strict=True)
    return _Seen(*(torch.cat(parts) for parts in fields))
