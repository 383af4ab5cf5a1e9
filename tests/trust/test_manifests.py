"""Everyone who loads a folder holds it against its manifest: one changed byte is refused, and its file is named."""

import shutil
import zlib

import pytest

from ava_core.errors import IntegrityError

CONTINUED = ("--prompt", "To be, or", "--max-new-tokens", "2")


@pytest.fixture
def changed(tiny_model, tmp_path):
    """A copy of the tiny model, and a function that flips a byte of one of its files."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")

    def flip(name, at=None):
        path = folder / name
        content = bytearray(path.read_bytes())
        content[zlib.crc32(name.encode()) % len(content) if at is None else at] ^= 1
        path.write_bytes(content)
        return path

    return folder, flip


FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
RECORDS = ("history.jsonl", "metrics.json", "training.json")
COMMANDS = ("generate", "export", "gguf", "serve", "evaluate", "quantize", "gate", "register", "train", "show")


def arguments(command, folder, shards, here, params):
    """A command that loads `folder`, with all that it needs besides."""
    step = ("--params", params, "--output", here / "out", "--work", here / "work")
    (here / "llama").mkdir(exist_ok=True)
    (here / "llama" / "convert_hf_to_gguf.py").touch()
    return {
        "generate": ("generate", "--model", folder, *CONTINUED),
        "export": ("export", "--model", folder, "--to", "mixtral", "--output", here / "out"),
        "gguf": ("export", "--model", folder, "--to", "gguf", "--llama-cpp", here / "llama", "--output", here / "out"),
        "serve": ("serve", "--model", folder, "--port", "0"),
        "evaluate": ("evaluate", "--model", folder, "--shards", shards, *step),
        "quantize": ("quantize", "--model", folder, "--shards", shards, "--scheme", "int8", *step),
        "gate": ("gate", "--model", folder, "--evaluation", folder, *step),
        "register": ("register", "--model", folder, "--evaluation", folder, "--gate", folder, *step),
        "train": ("train", "--reference", folder, "--shards", shards, *step),
        "show": ("show", folder),
    }[command]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", [*FILES, *RECORDS])
def test_changed_byte_of_a_file_is_refused_by_name(ava, changed, tiny_shards, make_params, tmp_path, command, name):
    folder, flip = changed
    path = flip(name)
    ended = ava(*arguments(command, folder, tiny_shards, tmp_path, make_params()))
    assert ended.code == 1
    assert f"{path}: its bytes are not those in the manifest: restore the folder" in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("field", ["key", "code", "inputs", "sha256", "threads"])
def test_changed_byte_of_a_manifest_is_refused_by_name(
    ava, changed, tiny_shards, make_params, tmp_path, command, field
):
    """In files that nothing reads when it only loads the folder."""
    folder, flip = changed
    path = flip("manifest.json", (folder / "manifest.json").read_text().index(f'"{field}": ') + len(field) + 7)
    ended = ava(*arguments(command, folder, tiny_shards, tmp_path, make_params()))
    assert ended.code == 1
    assert f"{path}: " in ended.err and "restore the folder or run its step again" in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["generate", "serve", "show"])
def test_added_and_missing_files_are_refused_by_name(ava, changed, tiny_shards, make_params, tmp_path, command):
    folder, _ = changed
    words = arguments(command, folder, tiny_shards, tmp_path, make_params())
    (folder / "custom_generate").symlink_to(tmp_path, target_is_directory=True)
    assert f"{folder}/custom_generate: is a link to a folder or to nothing" in ava(*words).err
    (folder / "custom_generate").unlink()
    (folder / "model.onnx").touch()
    assert f"{folder}/model.onnx: is not in the manifest" in ava(*words).err
    (folder / "model.onnx").unlink()
    (folder / "generation_config.json").unlink()
    assert f"{folder}/generation_config.json: is missing" in ava(*words).err


def test_model_that_no_manifest_stands_for_is_used_and_told_of(ava, plain, tmp_path):
    """Such as what `save_pretrained` or `ava export` leaves; whoever removes a manifest can't do so silently."""
    ended = ava("generate", "--model", plain, *CONTINUED)
    assert (ended.code, ended.out[:9]) == (0, "To be, or")
    assert ended.err.count(f"{plain}: holds no manifest.json: what it holds isn't verified") == 1
    ended = ava("serve", "--model", plain, "--port", "0")
    assert (ended.code, ended.err.count(f"{plain}: holds no manifest.json: it is not a finished output")) == (1, 1)


def test_model_that_is_exchanged_while_it_is_loaded_is_refused(changed, monkeypatch):
    from ava_core.generation import loading

    folder, flip = changed
    load = loading._load_torch
    monkeypatch.setattr(loading, "_load_torch", lambda *a: (load(*a), flip("config.json"))[0])
    with pytest.raises(IntegrityError, match=r"config\.json: its bytes are not those in the manifest"):
        loading.load_model(folder)


def test_whole_model_is_used_without_a_word(ava, tiny_model):
    ended = ava("generate", "--model", tiny_model, *CONTINUED)
    assert (ended.code, ended.err) == (0, "")
