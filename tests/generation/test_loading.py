"""Folders that can't be loaded are refused in one line that names the file."""

import json
import shutil
import subprocess
import sys

import pytest

from ava_core.errors import AvaError, IntegrityError
from ava_core.generation.loading import load_model


@pytest.fixture
def folder(tiny_model, tmp_path):
    """Without a manifest, as other tools leave it, so that what the loader itself says is seen."""
    copy = shutil.copytree(tiny_model, tmp_path / "model")
    (copy / "manifest.json").unlink()
    return copy


def refusal(folder, kind=AvaError) -> str:
    with pytest.raises(kind) as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_model_is_float32_and_in_evaluation_mode(folder):
    model, tokenizer = load_model(folder)
    assert not model.training
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
    assert tokenizer.eos_token_id == 0
    assert tokenizer.pad_token_id == 1


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"has no {name}: give a model folder, as `ava train` or `ava import` leaves it" in refusal(folder)


def test_missing_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    assert "has neither model.safetensors nor model.onnx" in refusal(folder)


def test_missing_folder_is_named(tmp_path):
    assert "nowhere: no such folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_damaged_file_is_refused(folder, name):
    (folder / name).write_bytes(b"\x07garbage")
    assert "can't be read" in refusal(folder, IntegrityError)


def test_weights_that_lack_a_tensor_are_refused(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.moe.gate.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "lacks the weight model.layers.0.moe.gate.weight" in refusal(folder, IntegrityError)


def test_tokenizer_of_another_model_is_refused(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"].update({f"word{index}": 384 + index for index in range(40)})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has 424 entries, the model's vocab_size is 384" in refusal(folder, IntegrityError)


def test_importing_the_package_imports_no_torch():
    code = "import sys, ava_core.generation, ava_core.cli.generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
