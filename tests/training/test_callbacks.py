"""Callbacks against a training that the test plays."""

import json
import logging
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from ava_core.config.train import TrainConfig
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.progress import Progress
from ava_core.training.callbacks import Callback, CallbackList, default_callbacks
from ava_core.training.callbacks.budget import Budget, share_done
from ava_core.training.callbacks.early_stopping import EarlyStopping
from ava_core.training.callbacks.experts import ExpertLoads, describe
from ava_core.training.callbacks.progress import ProgressBar
from ava_core.training.callbacks.records import JsonLines
from ava_core.training.callbacks.samples import Samples
from ava_core.training.callbacks.system import SystemMetrics
from tests.conftest import TINY_MODEL, VOCAB_SIZE


@dataclass
class FakeRanks:
    """Ranks: what the first rank gives is what the others get."""

    rank: int = 0
    said: list = field(default_factory=list)

    @property
    def is_first(self):
        return self.rank == 0

    def broadcast_object(self, value):
        if self.is_first:
            self.said.append(value)
            return value
        return self.said.pop(0)

    def mean(self, figures):
        return figures


@dataclass
class Run:
    """What callbacks see of a trainer."""

    config: TrainConfig = field(default_factory=lambda: TrainConfig(steps=100))
    ranks: FakeRanks = field(default_factory=FakeRanks)
    model: torch.nn.Module | None = None
    step: int = 0
    tokens_seen: int = 0
    tokens_per_second: float = 1000.0
    clock: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(seconds=0.0))
    history: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(rows=[]))
    reasons: list = field(default_factory=list)

    def stop(self, reason):
        self.reasons.append(reason)


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def evaluations(callback, run, losses, first=1):
    for step, loss in enumerate(losses, start=first):
        callback.after_evaluation(run, {"step": step, "validation_loss": loss})


def test_early_stopping_counts_evaluations_in_a_row_without_a_lower_loss():
    run, callback = Run(), EarlyStopping(2)
    evaluations(callback, run, [3.0, 3.1, 2.9, 2.9])
    assert not run.reasons
    evaluations(callback, run, [float("nan")], first=5)
    assert run.reasons == ["train.early_stopping_patience = 2: no validation loss below that of step 3 (2.9000)"]


def test_resumed_early_stopping_ends_where_an_undisturbed_one_does():
    losses = [3.0, 2.8, 2.9, 2.95, 2.7]
    run, whole = Run(), EarlyStopping(2)
    evaluations(whole, run, losses[:3])
    state = json.loads(json.dumps(CallbackList([whole]).state_dict()))
    resumed = EarlyStopping(2)
    CallbackList([resumed]).load_state_dict(state)
    evaluations(resumed, run, losses[3:4], first=4)
    assert len(run.reasons) == 1


def test_time_and_tokens_end_the_training_and_other_ranks_follow_the_first():
    config = TrainConfig(steps=100, max_minutes=0.5, max_tokens=1000)
    first = Run(config=config, clock=SimpleNamespace(seconds=29.9), tokens_seen=999)
    budget = Budget(config)
    budget.after_step(first, {"step": 1})
    assert not first.reasons
    first.clock.seconds = 30.0
    budget.after_step(first, {"step": 2})
    assert first.reasons == ["train.max_minutes = 0.5 are over"]
    # The other rank's clock is behind, and still it ends at the same step.
    other = Run(config=config, ranks=FakeRanks(1, list(first.ranks.said)), clock=SimpleNamespace(seconds=3.0))
    budget.after_step(other, {"step": 1})
    budget.after_step(other, {"step": 2})
    assert other.reasons == first.reasons
    tokens = Run(config=config, tokens_seen=1000)
    budget.after_step(tokens, {"step": 1})
    assert tokens.reasons == ["train.max_tokens = 1,000 have been seen"]


def test_share_that_is_done_is_the_furthest_of_steps_time_and_tokens():
    run = Run(config=TrainConfig(steps=100, max_minutes=1, max_tokens=1000))
    assert share_done(run, 10) == 0.1
    run.tokens_seen = 300
    assert share_done(run, 10) == 0.3
    run.clock.seconds = 90.0
    assert share_done(run, 10) == 1.0


class Shown(Progress):
    """Notes what would be on the bar."""

    def __init__(self):
        super().__init__()
        self.calls, self.ended = [], False

    def task(self, name, total):
        progress = self

        class Task:
            def __enter__(self):
                return lambda done, **figures: progress.calls.append((done, figures))

            def __exit__(self, *exception):
                progress.ended = True

        return Task()


def test_bar_shows_loss_speed_and_the_latest_validation():
    shown, run = Shown(), Run()
    run.history.rows = [{"step": 1, "validation_bits_per_byte": 2.5}, {"step": 2}]
    bar = ProgressBar(shown)
    bar.on_start(run)
    bar.after_step(run, {"step": 3, "train_loss": 4.0})
    bar.after_evaluation(run, {"step": 4, "validation_bits_per_byte": 2.25})
    bar.after_step(run, {"step": 4, "train_loss": 3.5})
    bar.on_end(run)
    assert shown.ended
    assert shown.calls == [
        (3.0, {"loss": "4.000", "tokens_per_second": "1,000", "validation_bits_per_byte": "2.500"}),
        (4.0, {"loss": "3.500", "tokens_per_second": "1,000", "validation_bits_per_byte": "2.250"}),
    ]


def test_other_ranks_show_and_write_nothing(tmp_path):
    shown = Shown()
    run = Run(ranks=FakeRanks(1), model=torch.nn.Linear(1, 1))
    callbacks = CallbackList(default_callbacks(run.config, shown, tmp_path))
    callbacks.on_start(run)
    callbacks.after_step(run, {"step": 1, "train_loss": 1.0})
    callbacks.on_end(run)
    assert not shown.calls and not list(tmp_path.iterdir())


def test_configuration_chooses_the_callbacks(tmp_path):
    def names(**settings):
        return [
            type(one).__name__ for one in default_callbacks(TrainConfig(**settings), Progress(), tmp_path, tmp_path)
        ]

    assert names() == ["ExpertLoads", "SystemMetrics", "ProgressBar"]
    assert names(early_stopping_patience=1, max_minutes=1, sample_every=5) == [
        *("ExpertLoads", "EarlyStopping", "Budget", "Samples", "SystemMetrics", "ProgressBar")
    ]


def test_list_keeps_states_apart_and_a_new_callback_starts_afresh():
    class Counter(Callback):
        def __init__(self, name):
            self._name, self.count = name, 0

        @property
        def name(self):
            return self._name

        def after_step(self, run, row):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    first = Counter("a")
    CallbackList([first]).after_step(None, {"step": 1})
    later = CallbackList([Counter("a"), Counter("b")])
    later.load_state_dict(CallbackList([first]).state_dict())
    assert [one.count for one in later.callbacks] == [1, 0]


def test_rows_after_the_checkpoint_and_a_torn_line_are_dropped_on_resume(tmp_path):
    path = tmp_path / "rows.jsonl"
    JsonLines(path).append({"step": 2, "text": "\u2028 é"})
    with path.open("a") as file:
        file.write('{"step": 4}\n{"step": 5, "te')
    JsonLines(path).resume(2)
    assert lines(path) == [{"step": 2, "text": "\u2028 é"}]
    JsonLines(tmp_path / "none.jsonl").resume(2)
    assert not (tmp_path / "none.jsonl").exists()


def test_rows_that_come_again_after_a_rewind_take_the_place_of_the_old_ones(tmp_path):
    rows = JsonLines(tmp_path / "rows.jsonl")
    for step, texts in ((2, "a"), (4, "bc"), (6, "d"), (4, "BC"), (4, "xy")):
        rows.append(*({"step": step, "text": text} for text in texts))
    assert [row["text"] for row in lines(rows.path)] == ["a", "x", "y"]


def test_system_metrics_are_measured_now_and_then_and_never_reach_the_history(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("ava_core.training.callbacks.system.time.monotonic", lambda: now[0])
    run, callback, row = Run(), SystemMetrics(tmp_path, every=10.0), {"step": 1, "train_loss": 1.0}
    callback.on_start(run)
    for step, moment in ((1, 101.0), (2, 110.9), (3, 111.0)):
        now[0] = moment
        row["step"] = step
        callback.after_step(run, row)
    assert row == {"step": 3, "train_loss": 1.0}
    rows = lines(tmp_path / "system.jsonl")
    assert [entry["step"] for entry in rows] == [1, 3]
    assert rows[0]["time"] <= rows[1]["time"]
    assert all(entry["host_memory_bytes"] > 2**20 and 0 < entry["host_memory_share"] < 1 for entry in rows)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return EnhancedMoEForCausalLM(
        EnhancedMoEConfig(vocab_size=VOCAB_SIZE, bos_token_id=0, eos_token_id=0, pad_token_id=1, **TINY_MODEL)
    )


def test_expert_loads_are_means_over_the_tokens_of_scoring_passes_alone(tmp_path, model):
    run, callback = Run(model=model), ExpertLoads(tmp_path)
    callback.on_start(run)
    ids = torch.randint(2, VOCAB_SIZE, (3, 16))
    model.train()
    model(ids, labels=ids)  # a training pass
    model.eval()
    with torch.no_grad():
        model(ids[:, :4])  # a pass that scores nothing
        expected = [model(part, labels=part).router_statistics for part in (ids[:1], ids[1:])]
        callback.after_evaluation(run, {"step": 7})
        callback.on_end(run)
        model(ids, labels=ids)
    (row,) = lines(tmp_path / "experts.jsonl")
    assert row["step"] == 7
    assert [layer["layer"] for layer in row["layers"]] == [0, 1]
    for index, layer in enumerate(row["layers"]):
        few, many = (statistics[index] for statistics in expected)
        mean_E = (few.load_E.double() + 2 * many.load_E.double()) / 3
        assert layer["load"] == pytest.approx(mean_E.tolist())
        assert layer["router_entropy"] == pytest.approx(float((few.entropy + 2 * many.entropy) / 3))
    assert not callback._sums


def test_figures_of_a_layer_are_those_that_the_evaluation_reports():
    from ava_core.evaluation.experts import LayerCounts, describe_layer

    chosen, tokens = [60, 20, 0, 40, 79, 1], 100
    theirs = describe_layer(1, LayerCounts(chosen=chosen, router_entropy=130.0), tokens, 3).to_json()
    ours = describe(1, [count / tokens for count in chosen], 1.3, 3)
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == pytest.approx(value) for name, value in theirs.items())


def test_nothing_is_written_where_another_model_was_measured(tmp_path, model):
    run, callback = Run(model=model), ExpertLoads(tmp_path)
    callback.on_start(run)
    callback.after_evaluation(run, {"step": 1})
    callback.on_end(run)
    assert not (tmp_path / "experts.jsonl").exists()


def test_special_token_in_a_sample_s_prompt_is_read_as_text(tmp_path, model, tiny_shards, monkeypatch):
    monkeypatch.setattr("ava_core.training.callbacks.samples.NEW_TOKENS", 2)
    real, read = model.generate, []
    monkeypatch.setattr(model, "generate", lambda **options: read.append(options["input_ids"]) or real(**options))
    callback = Samples(2, tmp_path, tiny_shards / "tokenizer", prompts=("<|pad|> a <|endoftext|>",))
    callback.on_start(Run(model=model))
    callback.after_step(Run(model=model), {"step": 2})
    assert read
    assert not {0, 1} & set(read[0].flatten().tolist())


def test_samples_come_again_alike_and_leave_the_training_as_it_was(tmp_path, model, tiny_shards, caplog, monkeypatch):
    monkeypatch.setattr("ava_core.training.callbacks.samples.NEW_TOKENS", 8)
    caplog.set_level(logging.INFO)
    run = Run(model=model)
    callback = Samples(2, tmp_path, tiny_shards / "tokenizer", prompts=("To be", ""))
    callback.on_start(run)
    model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    callback.after_step(run, {"step": 1})
    assert not (tmp_path / "samples.jsonl").exists()
    callback.after_step(run, {"step": 2})
    assert model.training and torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    callback.after_step(run, {"step": 4})
    rows = lines(tmp_path / "samples.jsonl")
    assert [(row["step"], row["prompt"], row["strategy"]) for row in rows] == [
        (step, prompt, strategy) for step in (2, 4) for prompt in ("To be", "") for strategy in ("greedy", "nucleus")
    ]
    assert [row["text"] for row in rows[:4]] == [row["text"] for row in rows[4:]]
    assert rows[0]["text"] != rows[1]["text"]
    assert f"step 2, greedy: {'To be' + rows[0]['text']!r}" in caplog.messages
    loss = model(torch.ones(1, 8, dtype=torch.long), labels=torch.ones(1, 8, dtype=torch.long)).loss
    loss.backward()  # no tensor of the inference has stayed behind
