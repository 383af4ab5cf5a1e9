"""Scaled positions and windows in params.yaml: what is refused, and what a child has of its parent."""

import json

import pytest

from ava_core.config import resolve
from ava_core.config.context import scaling_of
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEConfig

YARN = ("model.rope_scaling.type=yarn", "model.rope_scaling.original_max_position_embeddings=128")


def model(*settings):
    return resolve(overrides=settings).config.model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rope_scaling.factor=2"], "model.rope_scaling.factor = 2.0: has no effect with type = none: set the type"),
        (["rope_scaling.type=longrope"], "model.rope_scaling.type = longrope: must be one of none, linear, dynamic"),
        (["rope_scaling.type=linear", "rope_scaling.factor=0.5"], "model.rope_scaling.factor = 0.5: must be > 1"),
        (["rope_scaling.type=linear"], "model.rope_scaling.factor = None: must be given for linear"),
        (
            ["rope_scaling.type=dynamic", "rope_scaling.factor=2"],
            "original_max_position_embeddings = None: must be given",
        ),
        (
            ["rope_scaling.type=linear", "rope_scaling.factor=2", "rope_scaling.beta_slow=2"],
            "model.rope_scaling.beta_slow = 2.0: has no effect with type = linear",
        ),
        (
            ["rope_scaling.type=yarn", "rope_scaling.original_max_position_embeddings=512"],
            "model.rope_scaling.original_max_position_embeddings = 512: must be < model.max_position_embeddings = 512",
        ),
        (["sliding_window=1"], "model.sliding_window = 1: must be > 1"),
        (["sliding_window=512"], "model.sliding_window = 512: must be < model.max_position_embeddings = 512"),
        (["layer_types=[full_attention]"], r"model.layer_types = .*: has no effect without sliding_window"),
        (
            ["sliding_window=8", "layer_types=[full_attention, full_attention]"],
            "model.layer_types = .* must name sliding_attention",
        ),
        (["sliding_window=8", "layer_types=[chunked_attention]"], "must be one of full_attention or sliding_attention"),
        (
            ["num_layers=1", "sliding_window=8", "layer_types=[full_attention, sliding_attention]"],
            "model.layer_types = .* must have 1 to num_layers = 1 entries",
        ),
    ],
)
def test_setting_without_meaning_is_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=f"--set: .*{message}"):
        model(*(f"model.{setting}" for setting in settings))


def test_section_makes_the_models_configuration():
    section = model(*YARN, "model.sliding_window=32", "model.layer_types=[sliding_attention, full_attention]")
    config = EnhancedMoEConfig(**section.model_dump())
    assert config.rope_parameters["factor"] == 4.0 and config.rope_parameters["rope_type"] == "yarn"
    assert config.layer_types == ["sliding_attention", "full_attention"] * 2


def test_child_has_the_parents_scaling_and_window_or_its_own(tmp_path):
    parent = tmp_path / "parent"
    section = model(*YARN, "model.sliding_window=32")
    EnhancedMoEConfig(**section.model_dump()).save_pretrained(parent)
    inherited = model(f"train.init={parent}")
    assert inherited.rope_scaling.type == "yarn" and inherited.rope_scaling.factor == 4.0
    assert inherited.sliding_window == 32 and inherited.layer_types == ["sliding_attention"] * 4
    own = model(
        f"train.init={parent}",
        "model.sliding_window=null",
        "model.layer_types=null",
        "model.rope_scaling.factor=8",
        "model.max_position_embeddings=1024",
    )
    assert own.sliding_window is None and own.rope_scaling.factor == 8.0
    plain = tmp_path / "plain"
    EnhancedMoEConfig(**model().model_dump()).save_pretrained(plain)
    longer = model(f"train.init={plain}", *YARN, "model.max_position_embeddings=1024")
    assert longer.rope_scaling.type == "yarn" and longer.max_position_embeddings == 1024


def test_configuration_on_disk_says_the_same_as_the_section(tmp_path):
    config = EnhancedMoEConfig(**model(*YARN).model_dump())
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    assert scaling_of(written) == {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert scaling_of({"rope_type": "default", "rope_theta": 1e4}) == scaling_of(None) == {}
