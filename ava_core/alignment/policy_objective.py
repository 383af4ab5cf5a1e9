"""Group-relative policy optimisation: rewarded answers become likelier than the others to the same prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ava_core.alignment.rollout_batch import RolloutBatch
from ava_core.config.grpo import GrpoConfig
from ava_core.losses import IGNORE_INDEX
from ava_core.training.objective import ObjectiveLoss


class GroupRelativePolicy:
    """GRPO (arXiv 2402.03300, equation 3) as a mean over all tokens of the batch (DAPO, arXiv 2503.14476, equation 8).

    The policy that the ratio is taken against is the one that sampled, by the log-probabilities that it noted: so what
    a rollout computes otherwise than the training pass, by rounding or routing, is corrected for, up to the clip.

    A rollout of rounded weights is farther away, and would be clipped where nothing was learnt yet. There the ratio is
    taken against the model's own probability before the step, which is that of this pass, for each batch is one step;
    and each token has the weight min(model / rollout, importance_cap): truncated importance sampling (Ionides, J.
    Comput. Graph. Stat. 17(2), 2008; for rollouts of another engine: https://fengyao.notion.site/off-policy-rl).
    """

    def __init__(self, config: GrpoConfig) -> None:
        self.config = config

    def count(self, batch: RolloutBatch) -> int:
        """Tokens of answers."""
        return batch.num_labels

    def loss(self, model: nn.Module, batch: RolloutBatch) -> ObjectiveLoss:
        """Its parts are those of `judge`."""
        output: Any = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, routes=batch.routes, use_cache=False
        )
        judged = self.judge(output.logits, batch)
        return ObjectiveLoss(
            total=judged["train_loss"] + output.aux_loss,
            auxiliary=output.aux_loss,
            parts={name: part.detach() for name, part in judged.items()},
            routing=output.router_statistics,
        )

    def judge(self, logits_BSV: Tensor, batch: RolloutBatch) -> dict[str, Tensor]:
        """Means over the answers' tokens: `train_loss`; `rollout_kl`, the divergence of the policy that sampled from
        the one that is trained (k3: r - 1 - log r with r = trained / sampled); `clipped`, the share of tokens beyond
        the clip or the cap; `kl_to_start` per token, with a reference."""
        config, present = self.config, batch.labels != IGNORE_INDEX
        log_probs = batch.label_log_probs(logits_BSV, config.temperature)[present]
        change = log_probs - batch.sampled[present]
        ratio = change.exp()
        advantages = batch.advantages[:, None].expand_as(batch.labels)[present]
        if config.rollout == "onnx":
            bounded = ratio.clamp(max=config.importance_cap)
            gain = bounded.detach() * (log_probs - log_probs.detach()).exp() * advantages
        else:
            bounded = ratio.clamp(1 - config.clip, 1 + config.clip)
            gain = torch.minimum(ratio * advantages, bounded * advantages)
        loss = -gain.mean()
        found = {
            "rollout_kl": (ratio - 1 - change).mean(),
            "clipped": (ratio != bounded).float().mean(),
        }
        if batch.reference.shape[1]:
            back = batch.reference[present] - log_probs
            found["kl_to_start"] = (back.exp() - 1 - back).mean()
            loss = loss + config.beta * found["kl_to_start"]
        return {"train_loss": loss, **found}
