"""A killed training ends with the bytes of an undisturbed one; another one begins where a checkpoint ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ava_core.config.hardware import natural_precision
from ava_core.data.batches import TrainingBatches
from ava_core.data.shards import ShardedSplit
from ava_core.errors import AvaError, ConfigError
from ava_core.runtime.digests import digest_tree
from ava_core.training import validation
from ava_core.training.checkpoints import CheckpointFolder, writing
from ava_core.training.trainer import TrainingEngine
from tests.training.whole_runs import Killed, killed_at, rows, spoil_batches, steps_kept, weights

PRECISION = natural_precision()
OTHER_PRECISION = "fp32" if PRECISION == "bf16" else "bf16"
EVERYTHING = {
    "model": {"dropout": 0.1, "router_jitter": 0.1, "router": "expert_bias"},
    "train": {
        "steps": 10,
        "checkpoint_every": 3,
        "evaluate_every": 2,
        "early_stopping_patience": 3,  # of which the last is at step 8
        "schedule": "plateau",
        "plateau_patience": 1,
        "clip_mode": "adaptive",
        "ema": {"decay": 0.9},
        "guard": {"policy": "skip"},
        "regularization": {"adaptive": True, "target_gap": 0.0},
        "curriculum": {
            "sequence_lengths": [32],
            "sequence_share": 0.4,
            "batch_sizes": [2],
            "batch_share": 0.6,
            "difficulty": "rarity",
            "difficulty_share": 0.7,
        },
        "loss": {"multi_token_weight": 0.3},
    },
}
SKIPPED = 4
"""Number of the batch that is spoilt; its step lies after the checkpoint that the killed runs go on from."""


def everything(monkeypatch, **train):
    """Parameters for a run that is driven by all that can drive one: a spoilt batch, a loss that doesn't fall."""
    spoil_batches(monkeypatch, SKIPPED)
    measure = validation.mean_loss
    monkeypatch.setattr(validation, "mean_loss", lambda *a, **k: (10.0, measure(*a, **k)[1]))
    return {**EVERYTHING, "train": {**EVERYTHING["train"], **train}}


def assert_survives(run, monkeypatch, target, name, number, changes, *, before=True):
    """A run that is killed at the call `number` of `target.name` ends, when it goes on, like one that wasn't."""
    whole, _ = run("whole", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(target, name, killed_at(getattr(target, name), number, before=before))
        with pytest.raises(Killed):
            run("resumed", **changes)
    resumed, _ = run("resumed", **changes)
    assert digest_tree(resumed) == digest_tree(whole)
    return whole


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        ("muon", "bf16"),
        ("sophia", "fp32"),
        pytest.param("muon", "fp32", marks=pytest.mark.slow),
        *(
            pytest.param(optimizer, precision, marks=pytest.mark.slow)
            for optimizer in ("adamw", "lion", "adafactor")
            for precision in ("fp32", "bf16")
        ),
        pytest.param("sophia", "bf16", marks=pytest.mark.slow),
    ],
)
def test_killed_in_a_step_with_everything_on(run, monkeypatch, optimizer, precision):
    rates = {"learning_rate": 0.02 if optimizer == "muon" else 0.003}
    changes = everything(monkeypatch, optimizer=optimizer, precision=precision, **rates)
    # The seventh step's update is the sixth: one step is skipped.
    whole = assert_survives(run, monkeypatch, TrainingEngine, "update", 6, changes)
    history = rows(whole)
    last = history[-1]
    assert last["step"] == 8 and last["skipped_steps"] == 1 and "clipped_steps" in last
    assert [row["regularization_strength"] for row in history[1::2]] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert [row["learning_rate"] / rates["learning_rate"] for row in history] == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert {row["sequence_length"] for row in history} == {32, 64}
    assert {row["global_batch_size"] for row in history} == {2, 4}
    assert history[0]["competence"] < history[3]["competence"] < last["competence"] == 1
    biases = {name: value for name, value in weights(whole).items() if "expert_bias" in name}
    assert biases and all(value.any() for value in biases.values())


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(run, monkeypatch, tmp_path):
    changes = {"train": {"checkpoint_every": 2, "ema": {"decay": 0.9}}}
    assert_survives(run, monkeypatch, writing, "publish", 2, changes)
    assert steps_kept(tmp_path / "resumed.state" / "checkpoints") == [4, 6]


@pytest.mark.slow
def test_killed_in_an_evaluation(run, monkeypatch):
    changes = {
        "model": {"dropout": 0.1},
        "train": {"evaluate_every": 3, "checkpoint_every": 2, "ema": {"decay": 0.9}, "sample_every": 1},
    }
    assert_survives(run, monkeypatch, validation, "mean_loss", 1, changes)


@pytest.mark.slow
def test_killed_after_the_last_checkpoint(run, monkeypatch):
    assert_survives(run, monkeypatch, CheckpointFolder, "keep", 1, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "ends",
    [
        {"early_stopping_patience": 1, "learning_rate": 1e-9, "adam_learning_rate": 1e-9, "evaluate_every": 1},
        {"max_tokens": 600},
    ],
)
def test_killed_after_it_has_ended_early_makes_no_further_step(run, monkeypatch, ends):
    changes = {"train": {"precision": "bf16", "steps": 8, **ends}}
    whole = assert_survives(run, monkeypatch, CheckpointFolder, "keep", 1, changes)
    assert len(rows(whole)) < 8


@pytest.mark.slow
@pytest.mark.parametrize("update", [6, 8])
def test_killed_after_a_rewind(run, monkeypatch, update):
    """Step 6 fails and goes back to step 4. So the sixth update is that of step 5, with which the rewind isn't in any
    checkpoint yet; the eighth is that of step 7, with which it is."""
    spoil_batches(monkeypatch, 5)
    changes = {"train": {"steps": 8, "guard": {"policy": "rewind"}, "evaluate_every": 4}}
    whole = assert_survives(run, monkeypatch, TrainingEngine, "update", update, changes)
    assert rows(whole)[-1]["rewinds"] == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigkill_after_any_number_of_steps(tmp_path, tiny_shards, make_params):
    """The command itself, with a checkpoint at every step: the next signal comes one step further on."""
    train = {**EVERYTHING["train"], "checkpoint_every": 1, "early_stopping_patience": 10}
    params = make_params(**{**EVERYTHING, "train": train})

    def start(name):
        ava = [sys.executable, "-m", "ava_core.cli.main", "train", "--quiet", "--log-level", "error"]
        flags = [
            "--shards",
            tiny_shards,
            "--params",
            params,
            "--output",
            tmp_path / name,
            "--work",
            tmp_path / f"{name}.w",
        ]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("AVA_", "MLFLOW_"))}
        return subprocess.Popen([str(word) for word in (*ava, *flags)], env=clean, cwd=tmp_path)

    assert start("whole").wait() == 0
    codes = []
    for steps in (1, 3, 6, 9):
        process = start("killed")
        while process.poll() is None and not any(
            path.read_text().count("\n") >= steps for path in tmp_path.glob("killed.w/train/*/state/history.jsonl")
        ):
            time.sleep(0.002)
        process.kill()
        codes.append(process.wait())  # 0 where the signal came too late
    assert -signal.SIGKILL in codes
    assert start("killed").wait() == 0
    assert digest_tree(tmp_path / "killed") == digest_tree(tmp_path / "whole")


@pytest.fixture
def stable(run, tmp_path):
    """A finished run whose checkpoints of steps 2 and 4 are kept."""
    run("stable", **branch(steps=6))
    return tmp_path / "stable.kept"


def branch(**train):
    common = {"schedule": "wsd", "decay_share": 0.5, "checkpoint_every": 2, "keep_checkpoint_every": 2}
    return {"train": {**common, "evaluate_every": 100, "warmup_steps": 1, **train}}


@pytest.mark.slow
def test_another_run_goes_on_where_a_checkpoint_ends(run, stable, tmp_path):
    """The stable phase of six steps is three long; from step 2, a branch of four decays over its last two."""
    _, longer = run("longer", resume=stable / "step-00000002", **branch(steps=6))
    original, again = rows(tmp_path / "stable"), rows(tmp_path / "longer")
    assert [row["step"] for row in again] == [3, 4, 5, 6]
    assert again == original[2:]
    assert longer.metrics["tokens_seen"] == 6 * 4 * 64
    whole, resumed = weights(tmp_path / "stable"), weights(tmp_path / "longer")
    assert all(resumed[name].equal(whole[name]) for name in whole)

    shorter, _ = run("shorter", resume=stable / "step-00000002", **branch(steps=4, final_learning_rate_ratio=0.0))
    decaying = rows(shorter)
    assert [row["step"] for row in decaying] == [3, 4]
    assert [row["learning_rate"] for row in decaying] == pytest.approx([0.02, 0.01])
    assert decaying[0]["train_loss"] == original[2]["train_loss"]


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"global_batch_size": 8}, [8, 8]),
        ({"global_batch_size": 2, "micro_batch_size": 1}, [2, 2, 2]),
        ({"curriculum": {"batch_sizes": [2], "batch_share": 0.6}}, [2, 4, 4]),
    ],
)
def test_run_with_other_batches_goes_on_after_the_windows_that_were_dealt(
    run, stable, monkeypatch, tiny_shards, changes, sizes
):
    """The two steps before were of four windows each; a run of all sizes deals out each window once."""
    trained = []
    accumulate = TrainingEngine.accumulate
    monkeypatch.setattr(TrainingEngine, "accumulate", lambda *a: trained.append(a[1]) or accumulate(*a))
    run("branch", resume=stable / "step-00000002", **branch(steps=2 + len(sizes), **changes))
    assert [len(batch) for batch in trained] == sizes
    split = ShardedSplit.open(tiny_shards, "train")
    order = TrainingBatches(split.tokens, 64, 4, seed=1337)
    dealt = order.windows(order.starts(2 * 4, sum(sizes)))
    assert np.array_equal(np.concatenate([batch.input_ids for batch in trained]), dealt[:, :-1])
    assert np.array_equal(np.concatenate([batch.labels for batch in trained]), dealt[:, 1:])


@pytest.mark.slow
def test_checkpoint_brings_all_that_steers_the_steps(run, monkeypatch, tmp_path):
    changes = everything(monkeypatch, keep_checkpoint_every=5)  # after the skipped step
    whole, _ = run("whole", **changes)
    branch, _ = run("branch", resume=tmp_path / "whole.kept", **changes)
    assert rows(branch) == rows(whole)[5:]
    assert (branch / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_branch_goes_on_from_its_own_checkpoint(run, stable, monkeypatch, tmp_path):
    changes, start = branch(steps=6), stable / "step-00000002"
    run("whole", resume=start, **changes)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingEngine, "update", killed_at(TrainingEngine.update, 3))
        with pytest.raises(Killed):
            run("branch", resume=start, **changes)
    loads = []
    restore = CheckpointFolder.restore

    def noted(self, *arguments):
        loads.append(restore(self, *arguments))
        return loads[-1]

    monkeypatch.setattr(CheckpointFolder, "restore", noted)
    run("branch", resume=start, **changes)
    assert [item.step for item in loads] == [4]
    assert digest_tree(tmp_path / "branch") == digest_tree(tmp_path / "whole")


@pytest.mark.slow
def test_branch_whose_own_checkpoints_are_all_damaged_begins_again_where_it_began(run, stable, monkeypatch, tmp_path):
    changes, start = branch(steps=6), stable / "step-00000002"
    run("whole", resume=start, **changes)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingEngine, "update", killed_at(TrainingEngine.update, 3))
        with pytest.raises(Killed):
            run("branch", resume=start, **changes)
    for file in (tmp_path / "branch.state" / "checkpoints").glob("step-*/rank-00000.pt"):
        file.write_bytes(file.read_bytes()[:-1])
    run("branch", resume=start, **changes)
    assert digest_tree(tmp_path / "branch") == digest_tree(tmp_path / "whole")


def test_branch_that_rewinds_has_the_place_where_it_began_to_go_back_to(run, stable, monkeypatch):
    spoil_batches(monkeypatch, 3)
    changes = branch(steps=6, guard={"policy": "rewind"}, checkpoint_every=6)
    output, _ = run("branch", resume=stable / "step-00000002", **changes)
    assert [row["rewinds"] for row in rows(output)] == [1, 1, 1, 1]
    assert [row["step"] for row in rows(output)] == [3, 4, 5, 6]


def test_checkpoint_beyond_the_steps_of_the_run_is_refused(run, stable):
    with pytest.raises(ConfigError, match=r"--resume .*: is of step 6: train\.steps = 4 .*must be more, or") as caught:
        run("branch", resume=stable, **branch(steps=4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model": {"dropout": 0.2}},
            "was trained with another model: give the model that it was trained with, or its finished model with"
            " --init, which takes other dropout, losses, noise, capacity and context",
        ),
        (
            {"train": {"optimizer": "lion"}},
            "was trained with optimizer = muon, not lion: set train.optimizer = muon, or take only the weights:"
            " --reset-optimizer",
        ),
        (
            {"train": {"precision": OTHER_PRECISION}},
            f"was trained with precision = {PRECISION}, not {OTHER_PRECISION}: set train.precision = {PRECISION}, or"
            " take only the weights: --reset-optimizer",
        ),
    ],
)
def test_checkpoint_of_something_else_is_refused_before_the_first_step(run, stable, monkeypatch, changes, line):
    monkeypatch.setattr(TrainingEngine, "__init__", killed_at(TrainingEngine.__init__, 1))
    with pytest.raises(ConfigError) as caught:
        run("branch", resume=stable, **changes)
    assert str(caught.value) == f"--resume {stable}: {line}"


def test_checkpoint_of_another_tokenizer_is_refused(run, stable, tiny_shards, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    file = shards / "tokenizer" / "tokenizer_config.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(ConfigError, match=r"another tokenizer: give the tokenizer that it was trained with"):
        run("branch", resume=stable, shards=shards, **branch(steps=6))


def test_folder_that_is_no_checkpoint_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=rf"--resume {re.escape(str(tmp_path))}: not a checkpoint: .*keep_best"):
        run("branch", resume=tmp_path)


def test_damaged_checkpoint_of_another_run_is_refused_by_name(run, stable):
    file = stable / "step-00000004" / "rank-00000.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # it shares its bytes with the run's own
    file.write_bytes(content)
    with pytest.raises(AvaError, match=re.escape(str(file))):
        run("branch", resume=stable / "step-00000004", **branch(steps=6))
