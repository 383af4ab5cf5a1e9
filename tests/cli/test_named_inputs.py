"""`ava keys` and `ava config show` on an input that the configuration names."""

import json
import shutil

from ava_core.runtime import manifest
from tests.conftest import _finished as finished


def keys(ava, params, folder):
    assert ava("keys", "--params", params, "--output", folder).code == 0
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def test_key_knows_the_contents_of_the_parent_and_not_its_name(ava, tmp_path, tiny_model, make_params):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    named = keys(ava, make_params(train={"init": str(tiny_model)}), tmp_path / "a")
    same = keys(ava, make_params(train={"init": str(copy)}), tmp_path / "b")
    assert named == same
    assert named["train"]["inputs"] == {"init": manifest.read(tiny_model).digest}
    assert named["train"]["values"]["model"]["hidden_size"] == 32
    (copy / "note.txt").write_text("another")
    (copy / manifest.NAME).unlink()
    finished(copy, "train", {})
    other = keys(ava, make_params(train={"init": str(copy)}), tmp_path / "c")
    assert {name for name in other if other[name] != same[name]} == {"train"}


def test_configuration_is_shown_with_the_parent_s_values_and_what_is_trained(ava, tiny_model):
    shown = ava(
        *("config", "show", "--preset", "cpu/tiny", "--set", f"train.init={tiny_model}"),
        *("--set", "train.freeze=[embed*, layers.0.*]", "--set", "train.learning_rate_decay_by_layer=0.5"),
        *("--set", "tokenizer.vocab_size=384", "--set", "train.sequence_length=64"),
    )
    assert shown.code == 0, shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert any(line.startswith(f"hidden_size: 32 # train.init {tiny_model}") for line in lines)
    assert any(line.startswith("trained ") and line.endswith("the others are frozen") for line in lines)
    assert any(line.startswith("learning rates x 1 (1 tensors), x 0.5 (") for line in lines)


def test_parent_that_isn_t_there_is_named(ava, tmp_path):
    shown = ava("config", "show", "--set", f"train.init={tmp_path / 'gone'}")
    assert shown.code == 1 and shown.err.startswith(f"ava: {tmp_path / 'gone'}: no such folder")


def test_other_steps_need_no_parent(ava, tmp_path, make_params, tiny_model):
    params = make_params(train={"init": str(tmp_path / "gone")})
    result = ava("quantize", "--params", params, "--model", "m", "--shards", "s", "--scheme", "int8", "--output", "o")
    assert result.err.startswith("ava: ") and "gone" not in result.err
