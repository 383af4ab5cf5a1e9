"""The section `model` of a training that begins from a model."""

import json

import pytest

from ava_core.config import resolve, to_yaml
from ava_core.config.inheritance import CHANGEABLE, read_architecture
from ava_core.config.model import ModelConfig
from ava_core.errors import AvaError, ConfigError
from ava_core.models import EnhancedMoEConfig

SHAPE = {"hidden_size": 48, "num_layers": 3, "num_attention_heads": 2, "num_ffn_experts": 6, "dropout": 0.3}


@pytest.fixture
def parent(tmp_path):
    folder = tmp_path / "parent"
    EnhancedMoEConfig(**SHAPE, max_position_embeddings=1024, max_experts_per_token=None).save_pretrained(folder)
    return folder


def begun(parent, *overrides, text="preset: cpu/tiny"):
    return resolve(params_text=text, overrides=[f"train.init={parent}", *overrides])


def test_parent_says_what_the_user_did_not_and_the_preset_gives_way(parent):
    resolved = begun(parent, "model.dropout=0.0", "train.sequence_length=1024")
    model = resolved.config.model
    assert (model.hidden_size, model.num_layers, model.num_ffn_experts) == (48, 3, 6)
    assert model.dropout == 0.0 and model.max_position_embeddings == 1024
    assert model.max_experts_per_token == model.num_experts
    assert resolved.origins["model.hidden_size"] == f"train.init {parent}"
    assert resolved.origins["model.dropout"] == "--set"
    assert resolved.origins["train.steps"].startswith("configs/cpu/tiny")


def test_what_is_resolved_resolves_to_itself(parent):
    config = begun(parent).config
    values = config.model_dump(mode="json", by_alias=True)
    assert resolve(params_text=to_yaml({**values, "preset": None})).config.model == config.model


@pytest.mark.parametrize("field", sorted(set(ModelConfig.model_fields) - CHANGEABLE))
def test_field_that_decides_the_weights_is_refused_by_name_and_value(parent, field):
    theirs = read_architecture(parent)[field]
    other = {"qk_norm": "none", "router": "sinkhorn"}.get(field)
    if other is None:
        other = not theirs if isinstance(theirs, bool) else theirs + 2
    with pytest.raises(ConfigError) as refusal:
        begun(parent, f"model.{field}={json.dumps(other)}")
    assert f"--set: model.{field} = {other}: the model of train.init = {parent} has {theirs}" in str(refusal.value)
    assert begun(parent, f"model.{field}={json.dumps(theirs)}").config.model.hidden_size == 48


def test_context_of_an_unknown_parent_isn_t_held_against_the_preset_s():
    assert begun("models:/ava@champion", "train.sequence_length=4096").config.train.sequence_length == 4096
    assert begun("/nowhere", "train.sequence_length=4096").config.train.init == "/nowhere"


def test_context_of_the_parent_bounds_the_sequence(parent):
    with pytest.raises(ConfigError, match=r"sequence_length = 2048: must be <= model.max_position_embeddings = 1024"):
        begun(parent, "train.sequence_length=2048")


def test_folder_without_an_architecture_of_ours_is_named(tmp_path):
    with pytest.raises(AvaError, match=r"config.json: can't be read \(No such file or directory\)"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "olmoe"}')
    with pytest.raises(AvaError, match=r"model_type = olmoe: is no model of Ava's: `ava import`"):
        read_architecture(tmp_path)
