"""What a configuration asks of a training shows in what the training leaves behind: whole runs of a few steps."""

import math
import resource
import sys

import pytest
import torch

from ava_core.data.shards import ShardedSplit
from ava_core.errors import AvaError, ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.runtime.digests import digest_tree
from ava_core.training import validation
from ava_core.training.train import train
from ava_core.training.trainer import Trainer, TrainingEngine
from ava_core.training.validation import mean_loss
from tests.training.whole_runs import rows, spoil_batches, steps_kept, weights

FROZEN = {"learning_rate": 1e-9, "adam_learning_rate": 1e-9}
"""Rates that move no weight in bfloat16."""
OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.fixture
def after_steps(monkeypatch):
    """The exact weights after each step, as the run makes them."""
    seen = []
    finish = Trainer._finish_step

    def noted(self, row):
        seen.append({name: value.clone() for name, value in self.engine.weights().items()})
        finish(self, row)

    monkeypatch.setattr(Trainer, "_finish_step", noted)
    return seen


def equal(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def whole_split_loss(output, shards):
    model = EnhancedMoEForCausalLM.from_pretrained(output)
    return mean_loss(model, ShardedSplit.open(shards, "validation"), 64, batch_size=8)[0]


# Guard


def test_under_stop_a_gradient_that_is_nan_ends_the_run_with_its_parameter(run, monkeypatch):
    spoil_batches(monkeypatch, 2, gradient=math.nan)
    with pytest.raises(AvaError, match=r"step 3: gradient norm is nan \(in model\.\S+\): lower train\.learning_rate"):
        run("model")


@pytest.mark.parametrize("fault", [{"loss": math.nan}, {"gradient": math.inf}])
def test_skipped_step_counts_and_changes_no_weight(run, monkeypatch, after_steps, fault):
    spoil_batches(monkeypatch, 2, **fault)
    output, result = run("model", train={"guard": {"policy": "skip"}, "steps": 4})
    assert [row["skipped_steps"] for row in rows(output)] == [0, 0, 1, 1]
    assert equal(after_steps[1], after_steps[2])
    assert not equal(after_steps[0], after_steps[1]) and not equal(after_steps[2], after_steps[3])
    assert result.metrics["steps"] == 4 and math.isfinite(result.metrics["train_loss"])


@pytest.mark.slow
def test_rewind_goes_back_to_a_good_checkpoint_with_other_batches_and_a_lower_rate(run, monkeypatch, tmp_path):
    """Step 6 fails; step 5 proved the checkpoint of step 4. Batches 4 and 5 are passed over."""
    spoil_batches(monkeypatch, 5)
    settings = {"schedule": "constant", "warmup_steps": 0, "steps": 8, "evaluate_every": 8}
    plain, _ = run("plain", train=settings)  # under stop a spoilt figure changes nothing
    output, result = run("model", train={**settings, "guard": {"policy": "rewind", "lower_rate": 0.25}})
    history = rows(output)
    assert [row["step"] for row in history] == list(range(1, 9))
    assert [row["rewinds"] for row in history] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [row["learning_rate"] for row in history] == [0.02] * 4 + [0.005] * 4
    assert [row["train_loss"] for row in history[:4]] == [row["train_loss"] for row in rows(plain)[:4]]
    assert history[4]["train_loss"] != rows(plain)[4]["train_loss"]
    assert all(math.isfinite(row["train_loss"]) for row in history)
    assert math.isfinite(result.metrics["validation_loss"])
    assert steps_kept(tmp_path / "model.state" / "checkpoints") == [6, 8]


def test_rewind_before_the_first_checkpoint_goes_back_to_fresh_weights(run, monkeypatch, after_steps):
    spoil_batches(monkeypatch, 1)
    output, _ = run("model", train={"guard": {"policy": "rewind"}, "checkpoint_every": 6})
    assert [row["rewinds"] for row in rows(output)] == [1] * 6
    assert len(after_steps) == 7


def test_run_that_fails_again_and_again_ends_with_the_way_out(run, monkeypatch):
    spoil_batches(monkeypatch, *range(2, 100))
    policy = {"guard": {"policy": "rewind", "max_events": 2}}
    with pytest.raises(AvaError, match=r"there were 2 such events .*max_events.*lower train\.learning_rate"):
        run("model", train=policy)


# Averages


def test_final_model_and_validation_use_the_average_of_the_weights(run, after_steps, tiny_shards):
    output, result = run("model", train={"ema": {"decay": 0.3}, "optimizer": "adamw", "learning_rate": 0.01})
    average = {name: value.double() for name, value in after_steps[0].items()}
    for n, masters in enumerate(after_steps[1:], start=2):
        d = min(0.3, n / (9 + n))
        average = {name: d * value + (1 - d) * masters[name].double() for name, value in average.items()}
    final = weights(output)
    assert final.keys() <= average.keys()
    for name, value in final.items():
        torch.testing.assert_close(value.double(), average[name], rtol=0, atol=1e-6)
    assert not equal(final, {name: after_steps[-1][name] for name in final})
    # Measured in bfloat16, and here in float32.
    assert result.metrics["validation_loss"] == pytest.approx(whole_split_loss(output, tiny_shards), abs=5e-3)


# Curriculum, ends


def test_curriculum_is_in_the_history_row_by_row(run):
    curriculum = {"sequence_lengths": [16, 32], "sequence_share": 0.5, "batch_sizes": [2], "batch_share": 0.5}
    curriculum |= {"difficulty": "length", "difficulty_start": 0.5, "difficulty_share": 0.5}
    output, result = run("model", train={"steps": 8, "curriculum": curriculum})
    history = rows(output)
    assert [row["sequence_length"] for row in history] == [16, 16, 32, 32, 64, 64, 64, 64]
    assert [row["global_batch_size"] for row in history] == [2, 2, 2, 2, 4, 4, 4, 4]
    assert [row["tokens_seen"] for row in history] == [128, 256, 384, 512, 768, 1024, 1280, 1536]
    assert history[0]["competence"] == 0.5 and [row["competence"] for row in history[4:]] == [1] * 4
    assert result.metrics["tokens_seen"] == 1536


@pytest.mark.slow
def test_model_that_is_given_orders_the_curriculum(run):
    curriculum = {"difficulty": "reference", "difficulty_share": 1.0}
    reference, _ = run("reference")
    (bigram, _), (ordered, _) = (
        run(f"ordered-{model is None}", reference=model, train={"curriculum": curriculum, "steps": 3})
        for model in (None, reference)
    )
    assert [row["difficulty"] for row in rows(bigram)] != [row["difficulty"] for row in rows(ordered)]
    with pytest.raises(ConfigError, match=r"--reference: .* only with train\.curriculum\.difficulty = reference"):
        run("refused", reference=reference)


def test_budget_of_tokens_ends_run_and_schedule_with_a_measurement_of_the_whole_split(run, tiny_shards):
    settings = {"schedule": "linear", "warmup_steps": 0, "final_learning_rate_ratio": 0.0, "precision": "fp32"}
    output, result = run("model", train={**settings, "steps": 100, "max_tokens": 5 * 256, "evaluate_sequences": 1})
    history = rows(output)
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5]
    assert [row["learning_rate"] for row in history] == pytest.approx([0.02 * (1 - k / 5) for k in range(5)])
    assert history[-1]["validation_loss"] == result.metrics["validation_loss"]
    assert history[-1]["validation_loss"] == pytest.approx(whole_split_loss(output, tiny_shards), abs=1e-4)


def test_budget_of_time_ends_run_and_schedule(run, monkeypatch):
    module = sys.modules[train.__module__]

    class Clock(module.PhaseClock):
        """A step takes 15 s."""

        seconds = property(lambda self: 15.0 * (self.steps + (self._started is not None)))

    monkeypatch.setattr(module, "PhaseClock", Clock)
    settings = {"schedule": "linear", "warmup_steps": 0, "final_learning_rate_ratio": 0.0}
    output, _ = run("model", train={**settings, "steps": 100, "max_minutes": 1.0})
    history = rows(output)
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    # The first step's time has begun when its rate is set: it counts as one that is going on.
    assert [row["learning_rate"] for row in history] == pytest.approx([0.015, 0.01, 0.005, 0.0])
    assert "validation_loss" in history[-1]


def test_run_that_no_longer_gets_better_ends_early(run):
    output, result = run("model", train={**FROZEN, "steps": 12, "evaluate_every": 1, "early_stopping_patience": 3})
    assert [row["step"] for row in rows(output)] == [1, 2, 3, 4]
    assert result.metrics["steps"] == 4


@pytest.mark.slow
def test_samples_are_in_the_output_and_change_nothing(run):
    changes = {"model": {"dropout": 0.1, "router_jitter": 0.1}, "train": {"steps": 4}}
    without, _ = run("without", **changes)
    first, second = (run(name, **changes | {"train": {"steps": 4, "sample_every": 2}})[0] for name in ("a", "b"))
    assert digest_tree(first) == digest_tree(second)
    assert (first / "samples.jsonl").read_text().count("\n") == 4  # two strategies at two steps
    (first / "samples.jsonl").unlink()
    assert digest_tree(first) == digest_tree(without)


# Checkpoints


def test_policies_keep_their_checkpoints_whatever_the_interval_of_the_others_is(run, monkeypatch, tmp_path):
    losses = iter([5.0, 4.0, 4.5, 4.2])  # at steps 2, 4, 6 and 7
    monkeypatch.setattr(validation, "mean_loss", lambda *_, **__: (next(losses), 100))
    policies = {"keep_best_checkpoint": True, "keep_checkpoint_every": 3, "checkpoint_every": 100}
    run("model", train={**policies, "steps": 7, "evaluate_every": 2})
    assert steps_kept(tmp_path / "model.kept") == [3, 4, 6]


# Memory


@pytest.mark.slow
def test_budget_lets_the_fewest_layers_recompute_and_changes_no_bit(run, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(resource, "getpagesize", lambda: 0)  # the process itself counts nothing: the rest is exact
    settings = {"micro_batch_size": 16, "global_batch_size": 16, "optimizer": "adamw", "steps": 3}
    plain, result = run("plain", train=settings)
    enough = result.timings["estimated_memory_bytes"]
    assert "0 of 2 layers recompute" in caplog.text
    caplog.clear()
    budget = (enough - 1) / 2**30
    within, result = run("within", train={**settings, "memory_budget": budget})
    assert "1 of 2 layers recompute" in caplog.text
    assert result.timings["estimated_memory_bytes"] < enough
    assert digest_tree(within) == digest_tree(plain)


def test_timings_hold_what_was_promised(run):
    _, result = run("model", train={"steps": 3})
    timings = result.timings
    assert timings["estimated_memory_bytes"] > 0 and timings["peak_memory_bytes"] > 0
    assert 0 <= timings["overhead_share"] < 1
    assert 0 < timings["model_flops_utilization"] < 1
    assert timings["training_seconds"] > 0 and timings["startup_seconds"] > 0


def run_out_of_memory(monkeypatch, *, at_call):
    accumulate, calls = TrainingEngine.accumulate, []

    def limited(self, batch):
        calls.append(batch)
        if self.config.micro_batch_size > 2 and len(calls) >= at_call:
            raise RuntimeError(OUT_OF_MEMORY)
        return accumulate(self, batch)

    monkeypatch.setattr(TrainingEngine, "accumulate", limited)


@pytest.mark.slow
def test_run_that_runs_out_of_memory_ends_like_one_with_half_the_micro_batch(run, monkeypatch, caplog):
    halved, _ = run("halved", train={"micro_batch_size": 2})
    run_out_of_memory(monkeypatch, at_call=1)
    output, _ = run("model", train={"micro_batch_size": 4})
    assert digest_tree(output) == digest_tree(halved)
    assert "train.micro_batch_size = 2 instead of 4, and 2 passes accumulated for the same global batch" in caplog.text


@pytest.mark.slow
def test_memory_that_runs_out_later_loses_no_step(run, monkeypatch):
    whole, _ = run("whole", train={"micro_batch_size": 4})
    run_out_of_memory(monkeypatch, at_call=4)
    output, _ = run("model", train={"micro_batch_size": 4})
    assert [row["step"] for row in rows(output)] == [1, 2, 3, 4, 5, 6]
    assert rows(output)[:2] == rows(whole)[:2]
    assert [row["tokens_seen"] for row in rows(output)] == [row["tokens_seen"] for row in rows(whole)]


# Losses


def test_heads_for_further_tokens_are_trained_and_not_in_the_folder(run):
    from transformers import AutoModelForCausalLM

    output, _ = run("model", train={"loss": {"multi_token_weight": 0.3, "multi_token_depth": 2}})
    assert all(row["multi_token_1"] > 0 and row["multi_token_2"] > 0 for row in rows(output))
    assert not [name for name in weights(output) if "prediction_heads" in name]
    _, report = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.slow
def test_smoothed_labels_change_the_training_and_not_the_measurement(run):
    (plain, first), (smoothed, second) = (
        run(f"smoothing-{value}", train={**FROZEN, "steps": 2, "loss": {"label_smoothing": value}})
        for value in (0.0, 0.2)
    )
    assert first.metrics["validation_loss"] == second.metrics["validation_loss"]
    assert rows(plain)[0]["gradient_norm"] != rows(smoothed)[0]["gradient_norm"]


def test_surgery_reports_how_often_objectives_conflict(run):
    output, _ = run("model", train={"gradient_surgery": True, "steps": 3})
    assert all("gradient_conflict" in row for row in rows(output))
