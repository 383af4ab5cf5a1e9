import json
import math

import numpy as np
import pytest
import torch

from ava_core.cli.find_rate import draw
from ava_core.config.train import TrainConfig
from ava_core.errors import AvaError
from ava_core.models.diagnosis import NonFiniteError
from ava_core.training.find_rate import CRITERIA, find_rate
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
    assert search.suggestions["steepest"] < best
    assert search.suggestions["divergence"] >= search.suggestions["minimum"]
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


def test_criteria_are_those_of_a_known_curve():
    # Flat, a fall that is steepest from 4 to 5, the least loss at 8, above the first one from 11 on.
    smoothed = [5.0, 5.0, 4.9, 4.7, 4.4, 3.4, 3.2, 3.1, 3.0, 3.3, 4.5, 5.5, 9.0]
    chosen = {name: choose(smoothed) for name, (_, choose) in CRITERIA.items()}
    # The longest fall is 5.0 (once) 4.9 4.7 4.4 3.4 3.2 3.1 3.0: of 8 steps the sixth, from 0.
    assert chosen == {"minimum": (8, 10), "steepest": (4, 1), "valley": (6, 1), "divergence": (10, 10)}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_criterion_that_is_asked_for_counts_and_all_are_told(criterion, tmp_path):
    search = find_rate(Bowl(), BATCHES, first=0.01, last=1000.0, steps=60, criterion=criterion)
    assert search.suggestion == search.suggestions[criterion] == search.settings["train.learning_rate"]
    search.write(tmp_path)
    record = json.loads((tmp_path / "learning_rate.json").read_text())
    assert record["criterion"] == criterion and set(record["suggestions"]) == set(CRITERIA)
    lines = draw(search).splitlines()
    assert f"> {criterion[0]} {criterion}" in "\n".join(lines)
    assert all(any(line.startswith(f"{mark} {name[0]} {name}") for line in lines for mark in "> ") for name in CRITERIA)
    # The curve falls, then rises steeply: its highest point is the last one.
    curve = [line for line in lines if " |" in line]
    assert curve[0].rstrip().endswith("*") and all("*" in line or "|" in line for line in curve)


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
