"""A second kind of training for the tests: a reward model that learns which side of a pair was chosen."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ava_core.losses import IGNORE_INDEX
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForSequenceClassification
from ava_core.training.batch import Batch
from ava_core.training.objective import ObjectiveLoss
from tests.training.engine.rank_runs import LENGTH, VOCABULARY, tiny


@dataclass(frozen=True, kw_only=True, eq=False)
class PairBatch(Batch):
    """Rows 2i and 2i + 1 are the chosen and the rejected side of a pair; no token has a label.

    Attributes:
        attention_mask: (B, S), 0 for padding.
    """

    attention_mask: Tensor


class PairObjective:
    """The chosen side is to score higher (arXiv 2203.02155, eq. 1)."""

    def count(self, batch: PairBatch) -> int:
        return len(batch) // 2

    def loss(self, model, batch: PairBatch) -> ObjectiveLoss:
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        chosen, rejected = output.logits.view(-1, 2).unbind(dim=1)
        loss = -F.logsigmoid(chosen - rejected).mean()
        parts = {"train_loss": loss.detach(), "accuracy": (chosen > rejected).float().mean()}
        total = loss + output.aux_loss
        return ObjectiveLoss(total=total, auxiliary=output.aux_loss, parts=parts, routing=output.router_statistics)


def reward_model(**overrides) -> EnhancedMoEForSequenceClassification:
    """The decoder of `rank_runs.tiny` with a score."""
    fields = tiny(**overrides).config.to_dict()
    for name in ("id2label", "label2id"):  # of two classes, by default
        fields.pop(name)
    torch.manual_seed(1)
    return EnhancedMoEForSequenceClassification(EnhancedMoEConfig(**fields, num_labels=1))


def pairs(step: int, rank: int = 0, ranks: int = 1, count: int = 4) -> PairBatch:
    """A rank's share of `count` pairs: the chosen side counts upwards, the other one down; some are shorter."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(2, VOCABULARY, (count, 1, 1), generator=generator)
    lengths = torch.randint(4, LENGTH + 1, (count, 2, 1), generator=generator)
    positions = torch.arange(LENGTH)
    tokens = 2 + (starts + positions * torch.tensor([[1], [-1]])) % (VOCABULARY - 2)
    mask = (positions < lengths).long()
    share = slice(rank * count // ranks, (rank + 1) * count // ranks)
    input_ids = torch.where(mask.bool(), tokens, 1)[share].flatten(0, 1)
    return PairBatch(
        input_ids=input_ids,
        labels=torch.full_like(input_ids, IGNORE_INDEX),
        attention_mask=mask[share].flatten(0, 1),
        figures={"pairs": float(count)},
    )
