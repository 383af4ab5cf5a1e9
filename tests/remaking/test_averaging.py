"""`ava average`: what a mean of models is, and what has none."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ava_core.remaking.averaging import slerp
from ava_core.runtime import manifest
from tests.cli.conftest import ava  # noqa: F401  a fixture
from tests.conftest import _finished as finished


@pytest.fixture
def other(tiny_model, tmp_path):
    return changed(tiny_model, tmp_path / "other", weights=lambda name, value: value + 0.1 * torch.randn_like(value))


def changed(folder, copy, weights=None, **values):
    """A copy of a model with other weights, or another config.json."""
    shutil.copytree(folder, copy)
    if weights is not None:
        torch.manual_seed(1)
        tensors = load_file(copy / "model.safetensors")
        save_file(
            {name: weights(name, value) for name, value in tensors.items()},
            copy / "model.safetensors",
            {"format": "pt"},
        )
    config = json.loads((copy / "config.json").read_text()) | values
    (copy / "config.json").write_text(json.dumps(config))
    (copy / manifest.NAME).unlink()
    return finished(copy, "train", {"init": manifest.read(folder).digest})


@pytest.fixture
def average(ava, tmp_path):  # noqa: F811
    def call(*words):
        return ava("average", *words, "--output", tmp_path / "mean", "--quiet")

    return call


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_soup_of_a_model_with_itself_is_the_model(average, tmp_path, tiny_model):
    assert average(tiny_model, tiny_model, tiny_model).code == 0
    ours, theirs = tensors(tmp_path / "mean"), tensors(tiny_model)
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)


def test_soup_is_the_weighted_mean_in_whatever_order(average, tmp_path, tiny_model, other):
    assert average(tiny_model, other, "--weights", "0.75,0.25").code == 0
    a, b, found = tensors(tiny_model), tensors(other), tensors(tmp_path / "mean")
    for name, value in found.items():
        torch.testing.assert_close(
            value.double(), 0.75 * a[name].double() + 0.25 * b[name].double(), rtol=1e-6, atol=1e-9
        )
    again = average(other, tiny_model, "--weights", "0.25,0.75")
    assert again.code == 0 and "up to date" in again.err
    refused = average(other, tiny_model, "--weights", "0.75,0.25")
    assert refused.code == 2 and "exists" in refused.err


@pytest.mark.slow
def test_mean_is_a_model_that_later_commands_take(average, ava, tmp_path, tiny_model, other, tiny_shards, make_params):  # noqa: F811
    assert average(tiny_model, other).code == 0
    mean = tmp_path / "mean"
    made = manifest.verify(mean, "average")
    assert sorted(made.inputs.values()) == sorted(manifest.read(folder).digest for folder in (tiny_model, other))
    result = ava(
        *("evaluate", "--params", make_params(), "--model", mean, "--shards", tiny_shards),
        *("--output", tmp_path / "evaluation", "--work", tmp_path / "work", "--quiet"),
    )
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["test_loss"] > 0


def test_ends_of_the_arc_are_the_two_models(average, tmp_path, tiny_model, other):
    for weights, end in (("1,0", tiny_model), ("0,1", other)):
        assert average(tiny_model, other, "--method", "slerp", "--weights", weights, "--force").code == 0
        found = tensors(tmp_path / "mean")
        assert all(found[name].equal(value) for name, value in tensors(end).items())


def test_arc_keeps_the_length_that_a_straight_line_loses():
    a, b = torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
    middle = slerp(a, b, 0.5)
    torch.testing.assert_close(middle, torch.full((2,), 3 / math.sqrt(2), dtype=torch.float64))
    third = slerp(a, b, 1 / 3)
    torch.testing.assert_close(third, 3 * torch.tensor([math.cos(math.pi / 6), 0.5], dtype=torch.float64))


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_arc_between_parallel_tensors_is_a_line(factor):
    a = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(a, factor * a, 0.25), (0.75 + 0.25 * factor) * a)


def test_what_has_no_mean_is_refused_by_name(average, tmp_path, tiny_model, other):
    wide = changed(tiny_model, tmp_path / "wide", hidden_size=64)
    more = changed(tiny_model, tmp_path / "more", num_experts_per_token=1)
    words = changed(tiny_model, tmp_path / "words")
    content = json.loads((words / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (words / "tokenizer.json").write_text(json.dumps(content))
    (words / manifest.NAME).unlink()
    finished(words, "train", {})
    cases = [
        ((tiny_model,), 2, "1 model: a mean is of two or more"),
        ((tiny_model, wide), 2, "hidden_size = "),
        ((tiny_model, more), 2, "num_experts_per_token = "),
        ((tiny_model, words), 2, "its tokenizer is not that of"),
        (
            (tiny_model, other, "--weights", "0.7,0.7"),
            2,
            "--weights 0.7,0.7: must be shares in [0, 1] that sum to 1, not to 1.4",
        ),
        ((tiny_model, other, "--weights", "1.5,-0.5"), 2, "must be shares in [0, 1]"),
        ((tiny_model, other, "--weights", "1"), 2, "1 shares for 2 models"),
        ((tiny_model, other, "--weights", "nan,1"), 2, "must be shares in [0, 1]"),
        ((tiny_model, other, "--weights", "a,b"), 2, "must be numbers with commas"),
        ((tiny_model, other, "--method", "median"), 2, "--method median: must be one of soup, slerp"),
        ((tiny_model, other, tiny_model, "--method", "slerp"), 2, "is an arc between two models, not 3"),
        ((tiny_model, tmp_path / "gone"), 1, "gone: no such folder"),
    ]
    for words_, code, line in cases:
        result = average(*words_)
        assert result.code == code and line in result.err and len(result.err.splitlines()) == 1, result.err
        assert not (tmp_path / "mean").exists()


def test_strangers_are_averaged_with_a_warning(average, tmp_path, tiny_model, other):
    assert "nothing says" not in average(tiny_model, other).err
    (other / manifest.NAME).unlink()
    finished(other, "train", manifest.read(tiny_model).inputs)  # the same shards, and nothing more
    assert "nothing says that these models began from the same one" in average(tiny_model, other, "--force").err


def test_flipped_byte_is_refused_by_name(average, tmp_path, tiny_model, other):
    file = other / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = average(tiny_model, other)
    assert result.code == 1 and f"{file}: its bytes are not those" in result.err
