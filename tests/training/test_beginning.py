"""A training that begins from a model, or from a checkpoint: what it keeps of them, and what is begun anew."""

import json
import shutil

import pytest
import torch

from ava_core.errors import ConfigError
from ava_core.runtime import manifest
from ava_core.training.checkpoints.folder import Checkpoint
from ava_core.training.checkpoints.universal import SavedState
from ava_core.training.engine.engine import TrainingEngine
from tests.conftest import VOCAB_SIZE
from tests.training.test_resume import assert_survives, branch, stable  # noqa: F401  a fixture
from tests.training.whole_runs import rows, weights

PARENT_STEPS = 120
"""Of the shared tiny model."""


def begun_at(run, name, **train):
    output, _ = run(name, **train)
    return [row["step"] for row in rows(output)], output


def test_first_step_has_the_loss_of_the_parent_and_counts_from_one(run, tiny_model):
    fresh, _ = run("fresh", train={"steps": 2})
    begun, _ = run("begun", init=tiny_model, train={"steps": 2})
    assert rows(fresh)[0]["train_loss"] > 5.5 > 4.5 > rows(begun)[0]["train_loss"]
    assert [row["step"] for row in rows(begun)] == [1, 2]
    assert rows(begun)[0]["learning_rate"] == rows(fresh)[0]["learning_rate"]
    record = json.loads((begun / "training.json").read_text())
    digest = manifest.read(tiny_model).digest
    assert record["parent"] == {"model": digest, "steps": PARENT_STEPS, "schedule": "anew"}
    assert "parent" not in json.loads((fresh / "training.json").read_text())


def test_schedule_goes_on_where_the_parent_ended(run, tiny_model):
    settings = {"steps": PARENT_STEPS + 2, "init_schedule": "continue", "schedule": "linear", "warmup_steps": 2}
    begun, result = run("begun", init=tiny_model, train=settings | {"final_learning_rate_ratio": 0.0})
    assert [row["step"] for row in rows(begun)] == [121, 122]
    assert rows(begun)[0]["learning_rate"] == pytest.approx(0.02 * 2 / 120)
    assert result.metrics["steps"] == 122


def test_schedule_that_is_over_is_refused(run, tiny_model):
    with pytest.raises(ConfigError, match=r"train.init = .*: is of step 120: train.steps = 6 .*init_schedule be anew"):
        run("begun", init=tiny_model, train={"init_schedule": "continue"})


def test_frozen_weights_are_the_parent_s_to_the_bit_whatever_the_training_rounds(run, tiny_model):
    parent = weights(tiny_model)
    name = "model.layers.0.moe.experts.down_proj"
    assert parent[name].bfloat16().float().ne(parent[name]).any()
    freeze = [name for name in parent if name != "model.layers.1.self_attn.q_proj.weight"]
    begun, _ = run("begun", init=tiny_model, train={"steps": 2, "freeze": freeze})
    changed = [name for name, value in weights(begun).items() if not value.equal(parent[name])]
    assert changed == ["model.layers.1.self_attn.q_proj.weight"]


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        ("muon", "bf16"),
        *(pytest.param(name, "bf16", marks=pytest.mark.slow) for name in ("adamw", "lion", "adafactor")),
        pytest.param("sophia", "fp32", marks=pytest.mark.slow),
    ],
)
def test_killed_run_that_began_from_a_model_ends_with_the_same_bytes(
    run, monkeypatch, tiny_model, optimizer, precision
):
    train = {
        "optimizer": optimizer,
        "precision": precision,
        "learning_rate": 0.02 if optimizer == "muon" else 0.003,
        "freeze": ["embed*", "layers.0.*"],
        "learning_rate_decay_by_layer": 0.7,
        "learning_rate_groups": [{"pattern": "*.moe.gate.*", "multiplier": 0.5}],
        "ema": {"decay": 0.9},
    }
    whole = assert_survives(run, monkeypatch, TrainingEngine, "update", 5, {"init": tiny_model, "train": train})
    parent, found = weights(tiny_model), weights(whole)
    frozen = {name for name in parent if "embed" in name or "layers.0." in name}
    assert {name for name in parent if found[name].equal(parent[name])} == frozen


def test_frozen_weights_of_a_fresh_model_are_those_that_it_was_made_with(run):
    frozen, _ = run("frozen", train={"steps": 2, "freeze": ["*.moe.gate.*"]})
    other, _ = run("other", train={"steps": 3, "freeze": ["*.moe.gate.*"]})
    name = "model.layers.1.moe.gate.weight"
    assert weights(frozen)[name].equal(weights(other)[name])
    assert not weights(frozen)["model.norm.weight"].equal(weights(other)["model.norm.weight"])


def test_checkpoint_holds_nothing_of_frozen_parameters_and_begins_no_other_training(run, tmp_path, tiny_model):
    changes = branch(steps=2, freeze=["embed*"])
    run("frozen", init=tiny_model, **changes)
    folder = tmp_path / "frozen.kept" / "step-00000002"
    saved = SavedState(Checkpoint(folder, 2))
    assert not [name for name in (*saved.names, *saved.model["module"]) if "embed" in name]
    with pytest.raises(ConfigError, match=r"--resume .*: is of a training with 1 frozen .*embed_tokens.*with --init"):
        run("branch", resume=folder, **branch(steps=4))


class TestResume:
    """`--resume` with the schedule anew, or with another optimiser."""

    def test_schedule_anew_keeps_the_state_of_the_optimiser(self, run, stable):  # noqa: F811
        checkpoint = stable / "step-00000004"
        kept, _ = run("kept", resume=checkpoint, **branch(steps=2, init_schedule="anew"))
        reset, _ = run("reset", resume=checkpoint, **branch(steps=2, init_schedule="anew", reset_optimizer=True))
        assert [row["step"] for row in rows(kept)] == [1, 2]
        # The same weights, batch and rate: what differs after the first update is the optimiser's memory.
        assert rows(kept)[0]["train_loss"] == rows(reset)[0]["train_loss"]
        assert rows(kept)[0]["learning_rate"] == rows(reset)[0]["learning_rate"]
        assert rows(kept)[1]["train_loss"] != rows(reset)[1]["train_loss"]

    def test_weights_alone_are_taken_by_another_optimiser_and_precision(self, run, stable):  # noqa: F811
        changes = branch(steps=6, reset_optimizer=True, optimizer="adamw", precision="fp32", learning_rate=1e-9)
        output, _ = run("branch", resume=stable / "step-00000004", **changes)
        found = weights(output)
        saved = SavedState(Checkpoint(stable / "step-00000004", 4)).weights()
        assert [row["step"] for row in rows(output)] == [5, 6]
        name = "model.layers.1.self_attn.q_proj.weight"
        torch.testing.assert_close(found[name], saved[name], atol=1e-7, rtol=0)

    def test_layers_are_frozen_from_a_checkpoint_on(self, run, stable):  # noqa: F811
        exact = SavedState(Checkpoint(stable / "step-00000004", 4)).weights()
        output, _ = run("branch", resume=stable / "step-00000004", **branch(steps=6, freeze=["layers.0.*"]))
        found = weights(output)
        same = {name for name in exact if name in found and found[name].equal(exact[name])}
        assert same == {name for name in found if "layers.0." in name}

    def test_other_groups_of_rates_find_the_state_of_each_parameter(self, run, stable):  # noqa: F811
        """With multiples of 1 but for a gate the other weights go on as without groups."""
        groups = [{"pattern": "layers.0.moe.gate.weight", "multiplier": 1.0001}]
        changes = branch(steps=5, optimizer="muon")
        plain, _ = run("plain", resume=stable / "step-00000004", **changes)
        changes["train"]["learning_rate_groups"] = groups
        grouped, _ = run("grouped", resume=stable / "step-00000004", **changes)
        expected, found = weights(plain), weights(grouped)
        assert [name for name in expected if not found[name].equal(expected[name])] == [
            "model.layers.0.moe.gate.weight"
        ]


def test_entries_that_the_tokenizer_got_since_have_rows(run, tiny_model, tiny_shards, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    file = shards / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": VOCAB_SIZE, "content": "<|new|>"})
    file.write_text(json.dumps(tokenizer))
    splits = json.loads((shards / "splits.json").read_text())
    (shards / "splits.json").write_text(json.dumps({**splits, "vocab_size": VOCAB_SIZE + 1}))
    begun, _ = run("begun", init=tiny_model, shards=shards, train={"steps": 2, "freeze": ["embed*"]})
    parent, found = weights(tiny_model)["model.embed_tokens.weight"], weights(begun)["model.embed_tokens.weight"]
    assert found[:-1].equal(parent)
    torch.testing.assert_close(found[-1], parent.mean(dim=0))
    assert rows(begun)[0]["train_loss"] < 4.5
