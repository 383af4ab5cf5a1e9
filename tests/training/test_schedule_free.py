"""A training whose optimiser averages the weights: what is measured and exported is the average."""

import pytest

from ava_core.data.shards import ShardedSplit
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.runtime.digests import digest_tree
from ava_core.training import preconditions
from ava_core.training.engine.engine import TrainingEngine
from ava_core.training.validation import mean_loss
from tests.training.whole_runs import Killed, killed_at

TRAIN = {"optimizer": "adamw_schedule_free", "schedule": "constant", "learning_rate": 0.01, "precision": "fp32"}


@pytest.mark.slow
def test_a_killed_training_goes_on_and_exports_the_average_that_it_measured(run, monkeypatch, tiny_shards):
    whole, result = run("whole", train=TRAIN)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingEngine, "update", killed_at(TrainingEngine.update, 4))
        with pytest.raises(Killed):
            run("resumed", train=TRAIN)
    resumed, _ = run("resumed", train=TRAIN)
    assert digest_tree(resumed) == digest_tree(whole)
    model = EnhancedMoEForCausalLM.from_pretrained(whole)
    loss, _ = mean_loss(model, ShardedSplit.open(tiny_shards, "validation"), 64, batch_size=2)
    assert loss == pytest.approx(result.metrics["validation_loss"], abs=1e-6)


def test_a_library_that_is_missing_is_named_with_its_extra_before_the_work(run, monkeypatch):
    monkeypatch.setattr(preconditions, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=r"adamw_8bit: is from bitsandbytes, which isn't installed: pip install 'ava-moe\[optimizers\]'",
    ):
        run("refused", train={"optimizer": "adamw_8bit"})
