"""`ava train --init` with what can't be begun from: refused before the first step, by name and with the way out."""

import json
import re
import shutil

import pytest

from ava_core.runtime import manifest
from tests.cli.conftest import ava  # noqa: F401  a fixture
from tests.conftest import _finished as finished
from tests.training.test_bad_training_input import assert_refused, ava_train, no_steps  # noqa: F401  fixtures


@pytest.fixture
def copy(tiny_model, tmp_path):
    folder = tmp_path / "parent"
    shutil.copytree(tiny_model, folder)
    return folder


def renewed(folder, step="train"):
    (folder / manifest.NAME).unlink()
    return finished(folder, step, {})


def test_contradicting_setting_is_refused_by_name_and_value(ava_train, no_steps, tmp_path, tiny_model):  # noqa: F811
    result = ava_train("--init", tiny_model, model={"hidden_size": 64})
    line = r"params.yaml: model.hidden_size = 64: the model of train.init = .* has 32: leave it out"
    assert_refused(result, tmp_path, line)


def test_what_is_no_shape_may_be_set_anew(ava_train, tmp_path, tiny_model):  # noqa: F811
    result = ava_train("--init", tiny_model, model={"dropout": 0.1, "capacity_factor": 1.5}, train={"steps": 2})
    assert result.code == 0, result.err
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["dropout"], config["capacity_factor"], config["hidden_size"]) == (0.1, 1.5, 32)


def test_flag_and_setting_are_the_same_and_count_by_their_contents(ava_train, tmp_path, tiny_model, copy):  # noqa: F811
    assert ava_train("--init", tiny_model, train={"steps": 2}).code == 0
    made = manifest.read(tmp_path / "model")
    parent = manifest.read(tiny_model)
    assert (made.inputs["init"], made.made_from["init"]) == (parent.digest, parent.sha256)
    again = ava_train("--log-level", "info", train={"steps": 2, "init": str(copy)})
    assert again.code == 0 and "up to date" in again.err


def test_flag_wins_over_the_setting(ava_train, no_steps, tmp_path, copy):  # noqa: F811
    result = ava_train("--init", copy / "gone", train={"init": str(copy)})
    assert_refused(result, tmp_path, re.escape(f"{copy / 'gone'}: no such folder"), code=1)


def test_flipped_byte_is_refused_by_name(ava_train, no_steps, tmp_path, copy):  # noqa: F811
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert_refused(ava_train("--init", copy), tmp_path, re.escape(f"{file}: its bytes are not those"), code=1)


def test_folder_of_another_step_is_refused(ava_train, no_steps, tmp_path, copy):  # noqa: F811
    renewed(copy, "quantize")
    line = "is the output of `ava quantize`, not of .*`ava train`"
    assert_refused(ava_train("--init", copy), tmp_path, line, code=1)


def test_model_of_another_architecture_is_refused(ava_train, no_steps, tmp_path, copy):  # noqa: F811
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    renewed(copy)
    line = r"config.json: model_type = llama: is no model of Ava's: `ava import`"
    assert_refused(ava_train("--init", copy), tmp_path, line, code=1)


def test_weights_of_another_shape_than_the_configuration_s_are_refused(ava_train, no_steps, tmp_path, copy):  # noqa: F811
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"expert_intermediate_size": 48}))
    renewed(copy)
    result = ava_train("--init", copy, model={"expert_intermediate_size": 48})
    assert_refused(result, tmp_path, r"model.safetensors: model.layers.0.moe.experts.*: has the shape \(", code=1)


def test_model_of_another_tokenizer_is_refused(ava_train, no_steps, tmp_path, copy):  # noqa: F811
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    renewed(copy)
    assert_refused(ava_train("--init", copy), tmp_path, "their tokenizer is not that of .*tokenizer.from=")


def test_checkpoint_is_refused_in_favour_of_resume(ava_train, no_steps, tmp_path):  # noqa: F811
    folder = tmp_path / "step-00000002"
    folder.mkdir()
    (folder / "checkpoint.json").write_text("{}")
    for given in (folder, tmp_path):
        assert_refused(ava_train("--init", given), tmp_path, "train.init = .*: is a checkpoint: .* give --resume")


def test_parent_is_never_replaced_by_what_is_made_from_it(ava_train, no_steps, tmp_path, tiny_model):  # noqa: F811
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    result = ava_train("--init", folder, "--force")
    assert result.code == 2 and "--output" in result.err and "name another folder" in result.err
    assert manifest.verify(folder)


@pytest.mark.parametrize(
    ("flags", "train", "line"),
    [
        ((), {"init_schedule": "continue"}, "train.init_schedule = continue: there is nothing to go on from"),
        (("--reset-optimizer",), {}, "train.reset_optimizer = true: there is no optimiser to reset"),
        (("--init", "s3://bucket/model"), {}, "train.init = s3://bucket/model: must be a folder, or models:/"),
        (
            (),
            {"freeze": ["embeding*"]},
            "train.freeze: embeding\\*: matches no parameter: near are embed_tokens.weight",
        ),
        ((), {"freeze": ["layers.2.*"]}, r"train.freeze: layers.2.\*: matches no parameter: there are layers 0 to 1"),
        ((), {"freeze": ["lm_head*"]}, "train.freeze: lm_head.*: the head is the embedding"),
        ((), {"freeze": ["*"]}, r"train.freeze = \[\*\]: freezes every parameter: leave some"),
        (
            (),
            {"learning_rate_groups": [{"pattern": "layer.0.*", "multiplier": 0.1}]},
            r"train.learning_rate_groups: layer.0.\*: matches no parameter: near are layers.",
        ),
    ],
)
def test_setting_that_means_nothing_is_refused(ava_train, no_steps, tmp_path, flags, train, line):  # noqa: F811
    assert_refused(ava_train(*flags, train=train), tmp_path, line)


def test_model_and_checkpoint_at_once_are_refused(ava_train, no_steps, tmp_path, tiny_model):  # noqa: F811
    (tmp_path / "checkpoint").mkdir()
    result = ava_train("--init", tiny_model, "--resume", tmp_path / "checkpoint")
    assert_refused(
        result, tmp_path, "--resume .*: begins from a checkpoint, and train.init = .* from a model: give one"
    )


@pytest.mark.slow
def test_rate_is_searched_for_the_model_that_is_begun_from(ava_train, tmp_path, tiny_model):  # noqa: F811
    assert ava_train("--init", tiny_model, "--find-lr", model={"dropout": 0.0}).code == 0
    losses = json.loads((tmp_path / "model" / "learning_rate.json").read_text())["losses"]
    assert losses[0] < 4.5
