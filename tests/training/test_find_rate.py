import json
import math

import numpy as np
import pytest
import torch

from ava_core.config.train import TrainConfig
from ava_core.errors import AvaError
from ava_core.models.diagnosis import NonFiniteError
from ava_core.training.find_rate import find_rate
from ava_core.training.pretraining import window_batch

BATCHES = [window_batch(np.zeros((1, 9), dtype=np.int64), boundary_token_id=0)] * 100


class Bowl:
    """1 + w^2 / 2 under gradient descent: w is multiplied by 1 - rate, which diverges above a rate of 2."""

    def __init__(self, **settings):
        self.config = TrainConfig(learning_rate=0.1, **{"optimizer": "adamw", **settings})
        self.w = torch.nn.Parameter(torch.tensor(1.0))
        self.optimizer = torch.optim.SGD([{"params": [self.w], "lr": 0.1}, {"params": [], "lr": 0.03}])
        self.seen = []

    def accumulate(self, batch):
        loss = 1 + self.w.square() / 2
        self.optimizer.zero_grad()
        loss.backward()
        return {"train_loss": loss.item()}

    def update(self, limit):
        self.seen.append((limit, [group["lr"] for group in self.optimizer.param_groups]))
        self.optimizer.step()
        return None


def test_all_groups_are_swept_in_geometric_progression():
    engine = Bowl(gradient_clip=0.5)
    search = find_rate(engine, BATCHES, first=0.01, last=1.0, steps=21)
    multiples = [10 ** (-2 + step / 10) for step in range(21)]
    assert search.rates == pytest.approx([0.1 * m for m in multiples])
    assert [rates for _, rates in engine.seen] == [pytest.approx([0.1 * m, 0.03 * m]) for m in multiples]
    assert {limit for limit, _ in engine.seen} == {0.5}


def test_without_clipping_there_is_no_limit():
    engine = Bowl(gradient_clip=0.0)
    find_rate(engine, BATCHES, first=0.01, last=1.0, steps=20)
    assert {limit for limit, _ in engine.seen} == {math.inf}


def test_it_stops_where_the_loss_diverges_and_suggests_a_tenth_of_the_best():
    search = find_rate(Bowl(), BATCHES, first=0.01, last=1000.0, steps=60)
    assert len(search.rates) < 60
    assert search.smoothed[-1] > 2 * min(search.smoothed)
    best = search.rates[search.smoothed.index(min(search.smoothed))]
    assert search.suggestion == pytest.approx(best / 10)
    assert 0.5 < best < 20
    assert search.steepest < best
    assert search.multiple == pytest.approx(search.suggestion / 0.1)
    assert search.settings == {"train.learning_rate": pytest.approx(search.suggestion)}


def test_the_mean_is_corrected_for_its_start():
    search = find_rate(Bowl(), BATCHES, first=1e-9, last=1e-8, steps=12)
    assert search.losses == pytest.approx([1.5] * 12)
    assert search.smoothed == pytest.approx([1.5] * 12)


def test_muons_second_rate_is_suggested_too():
    search = find_rate(Bowl(optimizer="muon", adam_learning_rate=0.02), BATCHES, 0.01, 1.0, steps=12)
    assert search.settings["train.adam_learning_rate"] == pytest.approx(0.2 * search.settings["train.learning_rate"])


@pytest.mark.parametrize("failure", ["nan", "raises"])
def test_a_loss_that_is_no_number_ends_the_sweep(failure):
    class Broken(Bowl):
        def accumulate(self, batch):
            if len(self.seen) < 15:
                return super().accumulate(batch)
            if failure == "nan":
                return {"train_loss": math.nan}
            raise NonFiniteError("loss is nan")

    search = find_rate(Broken(), BATCHES, first=0.01, last=1.0, steps=40)
    assert len(search.losses) == 15
    assert all(math.isfinite(loss) for loss in search.smoothed)


def test_files_hold_the_search(tmp_path):
    search = find_rate(Bowl(), BATCHES, first=0.01, last=1.0, steps=12)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        search.write(tmp_path / name)
    record = json.loads((tmp_path / "a" / "learning_rate.json").read_text())
    assert record["suggestion"] == search.suggestion and record["rates"] == search.rates
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"learning_rate.json", "learning_rate.png"}
    for name in ("learning_rate.json", "learning_rate.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"first": 1.0, "last": 0.5}, "first = 1.0"), ({"first": 0.0}, "first = 0.0"), ({"steps": 9}, "steps = 9")],
)
def test_refusal_names_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_rate(Bowl(), BATCHES, **arguments)


def test_a_sweep_that_diverges_at_once_is_refused():
    with pytest.raises(AvaError, match=r"lower train\.learning_rate"):
        find_rate(Bowl(), BATCHES, first=100.0, last=1000.0, steps=20)
