"""The loop, its callbacks and its checkpoints with another objective: a reward model of pairs."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional as F

from ava_core.distributed.ranks import Ranks
from ava_core.progress import Progress
from ava_core.training.callbacks import CallbackList, default_callbacks
from ava_core.training.checkpoints import CheckpointFolder
from ava_core.training.ema import Ema
from ava_core.training.engine.engine import TrainingEngine
from ava_core.training.gradients import Guard, build_clipper
from ava_core.training.history import History
from ava_core.training.schedules import RateSchedule
from ava_core.training.speed.clock import PhaseClock
from ava_core.training.trainer import Trainer
from tests.training.engine.pairs import PairObjective, pairs, reward_model
from tests.training.engine.rank_runs import settings
from tests.training.whole_runs import Killed, killed_at

TOKENS = 4 * 2 * 16
"""Of a batch of four pairs."""


@dataclass(frozen=True)
class PairBatches:
    """Pairs by their number; `skipped` are left out before the first."""

    skipped: int = 0

    def batch(self, step, rank=0, ranks=1, passed_over=0):
        return pairs(self.skipped + step, rank, ranks)

    def record(self, step):
        return {"dealt": self.skipped + step}

    def resumed(self, step, record):
        return replace(self, skipped=record["dealt"] - step)


class HeldOutPairs:
    """Loss and accuracy on pairs that the training doesn't see."""

    @torch.no_grad()
    def measure(self, model, *, whole):
        model.eval()
        batch = pairs(10_000, count=16 if whole else 8)
        scores = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.flatten()
        margins = scores[::2] - scores[1::2]
        accuracy = float((margins > 0).float().mean())
        return {"validation_loss": float(-F.logsigmoid(margins).mean()), "validation_accuracy": accuracy}


def build(state, **overrides):
    fields = {"steps": 12, "evaluate_every": 4, "checkpoint_every": 4, "ema": {"decay": 0.5}}
    fields |= {"schedule": "plateau", "learning_rate": 0.001}
    config, ranks, model = settings(**fields, **overrides), Ranks(), reward_model()
    state.mkdir(exist_ok=True)
    torch.manual_seed(0)
    engine = TrainingEngine(model, config, ranks, PairObjective())
    return Trainer(
        config=config,
        ranks=ranks,
        engine=engine,
        batches=PairBatches(),
        validation=HeldOutPairs(),
        rates=RateSchedule(engine.optimizer, config),
        clipper=build_clipper(config),
        guard=Guard(config.guard),
        regularizer=None,
        ema=Ema(config.ema.decay, config.ema.every, [name for name, _ in model.named_buffers()]),
        checkpoints=CheckpointFolder(state / "checkpoints", config, ranks, {"objective": "pairs"}),
        history=History(state / "history.jsonl"),
        clock=PhaseClock(),
        callbacks=CallbackList(default_callbacks(config, Progress(quiet=True), state)),
    )


def rows(state):
    return [json.loads(line) for line in (state / "history.jsonl").read_text().splitlines()]


def test_loop_trains_measures_and_tells_what_another_objective_says(tmp_path):
    trainer = build(tmp_path / "state")
    trainer.run()
    history = rows(tmp_path / "state")
    assert [row["tokens_seen"] for row in history] == [TOKENS * step for step in range(1, 13)]
    assert all(row["pairs"] == 4.0 and 0 <= row["accuracy"] <= 1 for row in history)
    measured = [row for row in history if "validation_loss" in row]
    assert [row["step"] for row in measured] == [4, 8, 12]
    assert measured[1]["validation_loss"] < measured[0]["validation_loss"]
    assert measured[1]["validation_accuracy"] >= 0.75
    (tmp_path / "output").mkdir()
    trainer.history.export(tmp_path / "output")
    header, *lines = (tmp_path / "output" / "validation.csv").read_text().splitlines()
    assert header == "step,validation_loss,validation_accuracy" and len(lines) == 3
    assert "validation" not in (tmp_path / "output" / "history.csv").read_text().splitlines()[0]


def test_killed_training_of_pairs_ends_with_the_weights_of_an_undisturbed_one(tmp_path, monkeypatch):
    whole, state = build(tmp_path / "whole"), tmp_path / "killed"
    whole.run()
    with monkeypatch.context() as patch:
        patch.setattr(TrainingEngine, "update", killed_at(TrainingEngine.update, 7))
        with pytest.raises(Killed):
            build(state).run()
    resumed = build(state)
    resumed.run()
    assert rows(state) == rows(tmp_path / "whole")
    expected = whole.engine.exact_state_dict()
    assert all(value.equal(expected[name]) for name, value in resumed.engine.exact_state_dict().items())


def test_rewind_passes_over_the_pairs_of_the_failed_step(tmp_path, monkeypatch):
    accumulate, seen = TrainingEngine.accumulate, []

    def spoiled(self, batch):
        seen.append(batch)
        figures = accumulate(self, batch)
        return {**figures, "train_loss": float("nan")} if len(seen) == 7 else figures

    monkeypatch.setattr(TrainingEngine, "accumulate", spoiled)
    trainer = build(tmp_path / "state", guard={"policy": "rewind"})
    trainer.run()
    # Steps 1 to 6, the seventh that fails, and from the checkpoint of step 4 on those after it.
    numbers = [*range(7), *range(7, 15)]
    assert len(seen) == len(numbers)
    assert all(batch.input_ids.equal(pairs(number).input_ids) for batch, number in zip(seen, numbers, strict=True))
    assert [row["step"] for row in rows(tmp_path / "state")] == list(range(1, 13))
