"""A measurement never sees what the model is trained with."""

import pytest

from ava_core.config.loss import LossConfig
from ava_core.data.shards import ShardedSplit
from ava_core.generation.loading import load_model
from ava_core.losses import UnifiedLoss
from ava_core.training.validation import mean_loss


@pytest.mark.parametrize(
    "trained",
    [
        LossConfig(label_smoothing=0.3),
        LossConfig(temperature=3.0),
        LossConfig(multi_token_weight=1.0, repetition_weight=1.0, ngram_weight=1.0, focal_weight=1.0),
    ],
)
def test_validation_loss_is_the_plain_one_whatever_the_training_loss(tiny_shards, tiny_model, trained):
    model, _ = load_model(tiny_model)
    split = ShardedSplit.open(tiny_shards, "validation")
    plain = mean_loss(model, split, 64, batch_size=4, limit=8)
    model.loss_function = loss = UnifiedLoss.from_config(trained)
    assert mean_loss(model, split, 64, batch_size=4, limit=8) == plain
    assert model.loss_function is loss
