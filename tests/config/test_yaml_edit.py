import pytest
import yaml

from ava_core.config.yaml_edit import missing_keys, set_numbers
from ava_core.config.yaml_text import YamlError

TEXT = """# Kept: every comment, the order, the quotes.
seed: 1337
train:   # of the model
    steps: null
    "learning_rate": null # peak
    adam_learning_rate:
    nested: {learning_rate: 0.1, other: [1, 2]}
other: {learning_rate: 5}
"""


def test_only_the_value_changes():
    edited = set_numbers(TEXT, {"train.learning_rate": 0.0123, "train.adam_learning_rate": 1e-05})
    expected = TEXT.replace('"learning_rate": null', '"learning_rate": 0.0123')
    assert edited == expected.replace("adam_learning_rate:", "adam_learning_rate: 1.0e-05")
    # Also for readers of YAML 1.1, to whom 1e-05 is text.
    assert yaml.safe_load(edited)["train"]["adam_learning_rate"] == 1e-05


def test_values_inside_a_line_and_longer_ones_are_replaced():
    edited = set_numbers(TEXT, {"train.nested.learning_rate": 2.5, "seed": 7.0})
    assert edited == TEXT.replace("learning_rate: 0.1", "learning_rate: 2.5").replace("1337", "7.0")


def test_letters_of_other_scripts_before_the_value_move_nothing():
    text = "# \u00fc\u4e2d\U0001f600\nname: '\U0001f600'\ntrain: {learning_rate: null}\n"
    assert set_numbers(text, {"train.learning_rate": 0.5}) == text.replace("null", "0.5")


@pytest.mark.parametrize("key", ["train.rate", "learning_rate", "train.nested", "seed.learning_rate"])
def test_a_key_that_is_not_there_is_named(key):
    assert missing_keys(TEXT, ["seed", key]) == [key]
    with pytest.raises(YamlError, match=f"has no {key}"):
        set_numbers(TEXT, {key: 1.0})


@pytest.mark.parametrize(
    "text",
    ["a: &x 1\ntrain: {learning_rate: *x}\n", "train: &t {learning_rate: 1}\nother: *t\n"],
)
def test_what_other_keys_share_is_refused(text):
    with pytest.raises(YamlError, match=r"train\.learning_rate can't be set alone"):
        set_numbers(text, {"train.learning_rate": 2.0})
