"""Settings: found by the keys that people write, with the truth on defaults, presets and reruns; and their page.

Renew the page after a wanted change: `python -m ava_core.config.explaining.page --output docs/settings.md`.
"""

from pathlib import Path

import pytest

from ava_core.config import resolve
from ava_core.config.explaining import page
from ava_core.config.explaining.reruns import ELSEWHERE, IN_EVERY_KEY, LAYERS, rerun_words, steps_reading
from ava_core.config.explaining.settings import all_settings, below, find, inherits
from ava_core.config.explaining.shipped import presets_setting
from ava_core.config.faults import known_keys
from ava_core.config.gate import DEFAULTS
from ava_core.config.schema import FINE_TUNINGS, AvaConfig
from ava_core.errors import ConfigError
from ava_core.runtime.identity import values_read
from ava_core.steps.table import STEPS

ROOT = Path(__file__).parents[3]


def test_the_page_in_the_repository_is_what_the_code_makes(tmp_path):
    assert page.main(["--output", str(tmp_path / "settings.md")]) == 0
    assert (ROOT / "docs" / "settings.md").read_text() == (tmp_path / "settings.md").read_text()


def test_a_page_that_cannot_be_written_is_told_in_one_line(tmp_path, capsys):
    assert page.main(["--output", str(tmp_path / "gone" / "settings.md")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_key_that_may_be_written_is_found_or_has_a_reason():
    for key, _ in known_keys(AvaConfig):
        try:
            assert find(key).key.replace("[]", "") == key
        except ConfigError as error:
            assert key.partition(".")[0] in FINE_TUNINGS and "may not be set" in str(error)


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("data.sources.path", "data.sources[].path"),
        ("data.sources[0].path", "data.sources[].path"),
        ("register.gate.mine.at_most", "register.gate.NAME.at_most"),
        ("kubernetes.steps.train.gpus", "kubernetes.steps.train.gpus"),
        ("kubernetes.steps.train", "kubernetes.steps.train"),
        ("register.gate.mine", "register.gate"),
        ("run.tags.my.team", "run.tags"),
    ],
)
def test_a_key_is_found_as_people_write_it(written, known):
    assert find(written).key == known


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("train.learnig_rate", "train.learnig_rate: unknown key: did you mean train.learning_rate?"),
        ("learning_rate", "learning_rate: unknown key: did you mean train.learning_rate?"),
        ("register.gate.mine.figur", "register.gate.mine.figur: unknown key: did you mean register.gate.NAME.figure?"),
        ("xyzzy", "xyzzy: unknown key: `ava config explain` lists the sections"),
        ("sft.teacher.model", "sft.teacher.model: may not be set: distillation is of pretraining"),
        ("reward.adapter", "reward.adapter: may not be set: the head of a reward model is trained whole, and so"
                           " is its body"),
    ],
)  # fmt: skip
def test_a_key_that_is_not_there_is_told_in_one_line(written, said):
    with pytest.raises(ConfigError) as caught:
        find(written)
    assert str(caught.value) == said


def test_what_is_below_a_section_a_list_and_a_mapping():
    assert "train.loss" in {setting.key for setting in below("train")}
    assert "train.loss.temperature" not in {setting.key for setting in below("train")}
    assert "data.sources[].path" in {setting.key for setting in below("data.sources[]")}
    assert below("kubernetes.steps.train") == below("kubernetes.steps.every") != []
    assert "register.gate.NAME.figure" in {setting.key for setting in below("register.gate")}


def test_defaults_are_those_of_the_configuration():
    config = AvaConfig().model_dump(mode="json", by_alias=True)
    for key, setting in all_settings().items():
        by_machine = setting.default_words == "as the machine is"
        if "[]" in key or "NAME" in key or setting.shape.section or inherits(key) or by_machine:
            continue
        value = config
        for part in key.split("."):
            value = value[part]
        assert setting.default == value, key


def test_the_default_of_a_value_that_is_completed_is_the_complete_one():
    assert find("register.gate").default == DEFAULTS
    assert find("data.sources").default == [{"corpus": "shakespeare"}]


def test_what_a_fine_tuning_takes_over_is_said_to_be_as_in_train():
    assert find("sft.weight_decay").default_words == "as train.weight_decay"
    assert find("sft.loss.z_loss_weight").default_words == "as train.loss.z_loss_weight"
    assert find("grpo.learning_rate").default_words == "0.02 x train.learning_rate"
    config = resolve(overrides=["train.weight_decay=0.7", "train.learning_rate=0.1"]).config
    assert config.sft.weight_decay == 0.7 and config.grpo.learning_rate == pytest.approx(0.002)
    assert find("sft.steps").default_words == "200"


def test_presets_that_set_a_key_are_named_with_their_values():
    found = presets_setting("train.learning_rate")
    for name, value in found.items():
        assert resolve(overrides=[f"preset={name}"]).config.train.learning_rate == value
    assert found.keys() >= {"cpu/tiny", "gpu/large"}
    assert presets_setting("train.memory_budget")["hardware/a100"] == 72
    assert presets_setting("run.name") == {}


def other_value(setting):
    """A value that isn't the default and that the type allows, or None."""
    if setting.shape.kind == "true or false":
        return not setting.default
    if setting.shape.kind == "integer" and isinstance(setting.default, int):
        return setting.default * 2 or 1
    if setting.shape.kind == "number" and isinstance(setting.default, int | float):
        return setting.default / 2 or 0.5
    return None


def test_the_steps_that_rerun_are_those_whose_keys_change():
    """Held against what a step's key is made of, for every setting that another value can be made for."""
    before = {name: values_read(spec, resolve().config) for name, spec in STEPS.items()}
    tried = 0
    for key, setting in all_settings().items():
        other = other_value(setting)
        if other is None or "[]" in key or "NAME" in key or key in IN_EVERY_KEY:
            continue
        if inherits(key):  # it is asked of `train`
            continue
        try:
            config = resolve(above_all=("test", {key: other})).config
        except ConfigError:  # it doesn't go with the other defaults
            continue
        after = {name: values_read(spec, config) for name, spec in STEPS.items()}
        changed = {name for name in STEPS if after[name] != before[name]}
        direct, heirs = steps_reading(key)
        assert changed == {*direct, *heirs}, key
        tried += 1
    assert tried > 150


def test_reruns_in_words():
    assert rerun_words("train.steps") == "train"
    assert rerun_words("train.profile") == rerun_words("run.name") == "nothing"
    assert rerun_words("train.momentum") == "train; sft, reward, dpo, grpo where they don't set it"
    assert rerun_words("train.loss.z_loss_weight") == "train; sft where they don't set it"
    assert rerun_words("tokenizer.from") == "preprocess if what it names has other contents"
    assert rerun_words("threads") == "every step"
    assert rerun_words("quantize.block_size") == "quantize"


def test_exceptions_are_keys_that_there_are():
    assert {*LAYERS, *IN_EVERY_KEY, *ELSEWHERE} <= all_settings().keys()
