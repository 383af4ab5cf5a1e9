"""`ava train --init MODEL --keep-optimizer`: the state of the optimiser goes on with the model's weights."""

import json
import re
import shutil

import pytest

from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_value
from tests.cli.conftest import ava  # noqa: F401  a fixture
from tests.conftest import VOCAB_SIZE
from tests.conftest import _finished as finished
from tests.training.test_bad_training_input import ava_train  # noqa: F401  a fixture
from tests.training.whole_runs import rows, weights

KEEPING = {"steps": 4, "keep_last_checkpoint": True, "schedule": "constant", "warmup_steps": 1}
GOING_ON = {"schedule": "constant", "warmup_steps": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models of this module and their work folders, by what they were trained with."""
    return tmp_path_factory.mktemp("parents")


@pytest.fixture
def parent(ava_train, tmp_path, made):  # noqa: F811
    """Makes a model, by default one whose last checkpoint is kept."""

    def make(**train):
        output, work = tmp_path / "parent", tmp_path / "work"
        earlier = made / digest_value(train)[:8]
        if not earlier.exists():
            result = ava_train("--output", output, train=KEEPING | train)
            assert result.code == 0, result.err
            shutil.copytree(work, earlier / "work")
            shutil.copytree(output, earlier / "parent")
        else:
            shutil.copytree(earlier, tmp_path, dirs_exist_ok=True)
        return output

    return make


@pytest.fixture
def begun(ava_train, tmp_path):  # noqa: F811
    """Trains and gives the model's folder."""

    def begin(name, *flags, model=None, **train):
        output = tmp_path / name
        result = ava_train("--output", output, *flags, train=GOING_ON | train, model=model or {})
        assert result.code == 0, result.err
        return output

    return begin


def checkpoints_of(model, tmp_path):
    return tmp_path / "work" / "train" / manifest.read(model).key[:32] / "kept" / "checkpoints"


def test_with_the_schedule_gone_on_it_is_the_training_that_never_ended(parent, begun, tmp_path):
    model = parent()
    kept = begun("kept", "--init", model, "--keep-optimizer", steps=6, init_schedule="continue")
    resumed = begun("resumed", "--resume", checkpoints_of(model, tmp_path) / "step-00000004", steps=6)
    assert [row["step"] for row in rows(kept)] == [5, 6]
    assert rows(kept) == rows(resumed)
    found, expected = weights(kept), weights(resumed)
    assert all(found[name].equal(expected[name]) for name in expected)
    record = json.loads((kept / "training.json").read_text())["parent"]
    digest = manifest.read(model).digest
    assert record == {"model": digest, "steps": 4, "schedule": "continue", "optimizer": "kept"}
    assert manifest.read(kept).inputs["init"] == digest


def test_with_the_schedule_anew_only_the_optimizer_s_memory_differs(parent, begun):
    model = parent()
    plain = begun("plain", "--init", model, steps=2)
    kept = begun("kept", "--init", model, steps=2, keep_optimizer=True)
    assert [row["step"] for row in rows(kept)] == [1, 2]
    assert rows(kept)[0]["learning_rate"] == rows(plain)[0]["learning_rate"]
    name = "model.layers.0.self_attn.q_proj.weight"
    begun_with = weights(model)[name]
    steps = [float((weights(output)[name] - begun_with).norm()) for output in (plain, kept)]
    assert 0 < abs(steps[0] - steps[1]) < max(steps)


def test_what_is_no_weight_may_be_set_anew_unlike_with_resume(parent, begun, ava_train, tmp_path):  # noqa: F811
    model = parent()
    folder = checkpoints_of(model, tmp_path)
    refused = ava_train("--resume", folder, train=GOING_ON, model={"dropout": 0.1})
    assert refused.code == 2 and "another model" in refused.err
    kept = begun("kept", "--init", model, "--keep-optimizer", model={"dropout": 0.1}, steps=2)
    assert json.loads((kept / "config.json").read_text())["dropout"] == 0.1


def test_layers_may_be_frozen(parent, begun):
    model = parent()
    kept = begun("kept", "--init", model, "--keep-optimizer", steps=2, freeze=["layers.0.*"])
    before, after = weights(model), weights(kept)
    same = {name for name in before if after[name].equal(before[name])}
    assert same == {name for name in before if "layers.0." in name}


@pytest.mark.parametrize(
    ("of_parent", "train", "line"),
    [
        (
            {"keep_last_checkpoint": False},
            {},
            "train.keep_optimizer = true: .*parent: its training has left no state of its step 4 in .*kept/checkpoints:"
            " make it again with train.keep_last_checkpoint = true, or leave keep_optimizer out",
        ),
        (
            {"ema": {"decay": 0.9}},
            {},
            "its weights are an average .*or go on from the trained ones with --resume .*4",
        ),
        (
            {"optimizer": "adamw", "learning_rate": 0.003},
            {},
            "was trained with optimizer = adamw, not muon: set train.optimizer = adamw, or leave keep_optimizer out",
        ),
        ({"freeze": ["embed*"]}, {}, "is of a training with 1 frozen parameters, .*: leave keep_optimizer out"),
        ({}, {"reset_optimizer": True}, "train.reset_optimizer begins it anew: leave one out"),
        (
            {},
            {"adapter": {"kind": "lora"}, "optimizer": "adamw", "learning_rate": 0.003},
            "keep_optimizer = true: the model's optimiser has a state of its weights, not of updates",
        ),
    ],
)
def test_state_that_is_not_there_or_not_of_these_weights_is_refused(parent, ava_train, of_parent, train, line):  # noqa: F811
    model = parent(**of_parent)
    result = ava_train("--init", model, "--keep-optimizer", train=GOING_ON | train)
    assert result.code == 2 and re.search(line, result.err), result.err


@pytest.mark.parametrize(
    ("flags", "line"),
    [((), "there is no optimiser to keep: give --init"), (("--resume", "."), "keeps it by itself: leave it out")],
)
def test_it_wants_a_model_to_begin_from(ava_train, flags, line):  # noqa: F811
    result = ava_train("--keep-optimizer", *flags, train=GOING_ON)
    assert result.code == 2 and re.fullmatch(f"ava: train.keep_optimizer = true: .*{line}\n", result.err), result.err


def test_entries_that_the_tokenizer_got_since_have_no_state(parent, ava_train, tmp_path, tiny_shards):  # noqa: F811
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    file = shards / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": VOCAB_SIZE, "content": "<|new|>"})
    file.write_text(json.dumps(tokenizer))
    splits = json.loads((shards / "splits.json").read_text())
    (shards / "splits.json").write_text(json.dumps({**splits, "vocab_size": VOCAB_SIZE + 1}))
    (shards / manifest.NAME).unlink()
    finished(shards, "preprocess", {})
    result = ava_train("--init", parent(), "--keep-optimizer", shards=shards, train=GOING_ON)
    assert result.code == 2 and "the tokenizer has got 1 entries since" in result.err, result.err
