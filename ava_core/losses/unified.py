"""The training objective: a weighted sum of named parts, each reported by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ava_core.config.loss import LossConfig
from ava_core.config.train_sections import TeacherConfig
from ava_core.losses.chunked import chunked_head_loss
from ava_core.losses.distillation import Distillation
from ava_core.losses.multi_token import MultiToken
from ava_core.losses.rows import IGNORE_INDEX, OfRows, Rows, TokenContext
from ava_core.losses.token import CrossEntropy, FocalLoss, LogitZLoss, TokenLoss
from ava_core.losses.unlikelihood import EarlyEnd, NgramRepetition, Repetition, Unlikelihood


@dataclass(slots=True, kw_only=True)
class LossOutput:
    """Attributes:
    total: scalar to differentiate: `main` and `auxiliary`.
    main: scalar to differentiate: all that is computed from predictions.
    auxiliary: scalar to differentiate: the weighted auxiliary parts; 0 if there are none.
    parts: every part by name, unweighted and detached (nats per token for the cross-entropy).
    """

    total: Tensor
    main: Tensor
    auxiliary: Tensor
    parts: dict[str, Tensor]


class UnifiedLoss:
    """Token losses and multi-token prediction, averaged over the predicted tokens, plus auxiliary losses that the model
    has computed.

    Args:
        token_losses: parts computed from logits; see `ava_core.losses.token.TokenLoss`.
        auxiliary_weights: weight of each auxiliary part by name; read at every call, so that a mapping may change its
            values. A part without a weight is refused; a weight without a part is allowed, for not every model has
            every part.
        multi_token: loss of the extra heads; None: there are none.

    Raises:
        ValueError: two parts have one name, or a weight is negative.
    """

    def __init__(
        self,
        token_losses: Sequence[TokenLoss],
        auxiliary_weights: Mapping[str, float] | None = None,
        multi_token: MultiToken | None = None,
    ):
        self.token_losses = list(token_losses)
        self.auxiliary_weights: Mapping[str, float] = {} if auxiliary_weights is None else auxiliary_weights
        self.multi_token = multi_token
        weights = [(loss.name, loss.weight) for loss in self.token_losses] + list(self.auxiliary_weights.items())
        if multi_token is not None:
            weights += [(name, multi_token.weight) for name in multi_token.names]
        names = [name for name, _ in weights]
        if len(set(names)) < len(names):
            raise ValueError(f"loss parts = {names}: must have different names")
        for name, weight in weights:
            if weight < 0:
                raise ValueError(f"weight of loss part {name} = {weight}: must be >= 0")

    @classmethod
    def from_config(
        cls,
        config: LossConfig,
        *,
        balance_loss_weight: float = 0.0,
        router_z_loss_weight: float = 0.0,
        router_diversity_weight: float = 0.0,
        end_token_id: int | None = None,
        teacher: TeacherConfig | None = None,
    ) -> UnifiedLoss:
        """What the section `train.loss` describes, with the routers' weights. A part of weight 0 is left out.

        With a `teacher`, of weight w and temperature t, the cross-entropy has the weight 1 - w and the divergence from
        the teacher w t^2 (arXiv 1503.02531, section 2).

        Raises:
            ValueError: the early-end penalty is on and there is no `end_token_id`.
        """
        cross_entropy = CrossEntropy(label_smoothing=config.label_smoothing, temperature=config.temperature)
        optional: list[TokenLoss] = []
        if teacher is not None:
            cross_entropy.weight = 1 - teacher.weight
            weight = teacher.weight * teacher.temperature**2
            optional.append(Distillation(weight=weight, temperature=teacher.temperature))
        optional += [
            LogitZLoss(weight=config.z_loss_weight),
            FocalLoss(weight=config.focal_weight, gamma=config.focal_gamma),
            Repetition(weight=config.repetition_weight),
            NgramRepetition(weight=config.ngram_weight, size=config.ngram_size),
        ]
        if config.early_end_weight:
            if end_token_id is None:
                raise ValueError("loss part early_end: needs the token that ends documents: the tokenizer has none")
            optional.append(EarlyEnd(weight=config.early_end_weight, end_token_id=end_token_id))
        multi_token = None
        if config.multi_token_weight:
            multi_token = MultiToken(weight=config.multi_token_weight, depth=config.multi_token_depth)
        weights = {
            "balance_loss": balance_loss_weight,
            "router_z_loss": router_z_loss_weight,
            "router_diversity": router_diversity_weight,
        }
        return cls([cross_entropy, *(loss for loss in optional if loss.weight)], weights, multi_token)

    @classmethod
    def standard(
        cls, *, label_smoothing: float = 0.0, logit_z_loss_weight: float = 0.0, **router_weights: float
    ) -> UnifiedLoss:
        """The cross-entropy, a z-loss if it has a weight, and the routers' parts with the weights of `from_config`.

        Without arguments it is what measurements use.
        """
        config = LossConfig(label_smoothing=label_smoothing, z_loss_weight=logit_z_loss_weight)
        return cls.from_config(config, **router_weights)  # type: ignore[arg-type]

    @property
    def needs_context(self) -> bool:
        """Whether a part depends on more than logits and labels."""
        return self.multi_token is not None or any(
            isinstance(loss, Unlikelihood | Distillation) for loss in self.token_losses
        )

    def __call__(
        self,
        labels: Tensor,
        *,
        logits: Tensor | None = None,
        hidden: Tensor | None = None,
        head_weight_VD: Tensor | None = None,
        future_hidden: Sequence[Tensor] | None = None,
        auxiliary: Mapping[str, Tensor] | None = None,
        context: TokenContext | None = None,
        num_items: Tensor | int | None = None,
    ) -> LossOutput:
        """Compute the loss of `labels` (...), aligned with `logits` (..., V), or with `hidden` (..., D).

        Args:
            labels: (B, S) if a part depends on neighbouring tokens.
            logits, hidden: one of them; with `hidden` and `head_weight_VD` the logits exist in chunks only.
            future_hidden: (B, S, D) of each extra head, with `head_weight_VD`; None leaves `multi_token` out, as in
                evaluation.
            auxiliary: parts that the model computed, by name.
            context: needed if `needs_context`.
            num_items: predicted tokens of a whole batch that this is a part of, where such parts are accumulated: the
                divisor of the token losses. The auxiliary parts, means of their own, get this part's share of it.

        Raises:
            ValueError: neither or both of `logits` and `hidden` given; an auxiliary part has no weight; the context
                lacks what a part needs; another number of extra heads than `multi_token` has.
        """
        if (logits is None) == (hidden is None):
            raise ValueError("UnifiedLoss: exactly one of logits and hidden must be given")
        if head_weight_VD is None and (hidden is not None or future_hidden is not None):
            raise ValueError("UnifiedLoss: hidden and future_hidden must come with head_weight_VD")
        context = context or TokenContext()
        predicted, share = (labels != IGNORE_INDEX).sum(), None
        if num_items is None:
            num_items = predicted.clamp_min(1)
        else:
            share = predicted / num_items
        candidates: dict[str, OfRows] = {
            loss.name: loss.candidates(labels, context)
            for loss in self.token_losses
            if isinstance(loss, Unlikelihood | Distillation)
        }
        labels_T = labels.reshape(-1)
        if logits is not None:
            main, parts = self._of_logits(logits, labels_T, candidates, num_items)
        elif hidden is not None and head_weight_VD is not None:
            main, parts = self._of_hidden(hidden, head_weight_VD, labels_T, candidates, num_items)
        if self.multi_token is not None and future_hidden is not None and head_weight_VD is not None:
            scale = self.multi_token.weight / self.multi_token.depth
            sums = self.multi_token(future_hidden, head_weight_VD, labels, context.document_ids_BS)
            for name, part in zip(self.multi_token.names, sums, strict=True):
                main = main + scale * part / num_items
                parts[name] = part.detach() / num_items
        total, added = main, torch.zeros_like(main)
        for name, part in (auxiliary or {}).items():
            if name not in self.auxiliary_weights:
                known = ", ".join(self.auxiliary_weights) or "none"
                raise ValueError(f"auxiliary loss {name!r} has no weight: known are {known}")
            if share is not None:
                part = part * share
            weighted = self.auxiliary_weights[name] * part
            total, added = total + weighted, added + weighted
            parts[name] = part.detach()
        return LossOutput(total=total, main=main, auxiliary=added, parts=parts)

    def _of_logits(
        self, logits: Tensor, labels_T: Tensor, candidates: Mapping[str, OfRows], num_items: Tensor | int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the token losses, and each by name."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        logits_TV = logits.reshape(-1, logits.shape[-1]).to(wide)
        rows = Rows(logits_TV=logits_TV, labels_T=labels_T, candidates=candidates)
        total, parts = logits.new_zeros((), dtype=wide), {}
        for loss in self.token_losses:
            part = loss(rows).sum() / num_items
            total = total + loss.weight * part
            parts[loss.name] = part.detach()
        return total, parts

    def _of_hidden(
        self,
        hidden: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        candidates: Mapping[str, OfRows],
        num_items: Tensor | int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `_of_logits`, in chunks."""
        losses, hidden_TD = self.token_losses, hidden.reshape(-1, hidden.shape[-1])
        total, sums = chunked_head_loss(hidden_TD, weight_VD, labels_T, losses, candidates=candidates)
        return total / num_items, {loss.name: part / num_items for loss, part in zip(losses, sums, strict=True)}
