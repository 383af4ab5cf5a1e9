"""What is never done with a file of somebody else's: unpickle it, run its code, fetch what it names."""

import ast
import json
from pathlib import Path

import pytest

from ava_core.errors import AvaError, IntegrityError

PACKAGE = Path(__file__).parents[2] / "ava_core"
UNPICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
WITHOUT_WEIGHTS = {"AutoConfig", "AutoTokenizer", "GenerationConfig", "PreTrainedTokenizerFast"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
CODE = """
from pathlib import Path
Path({mark!r}).touch()
"""


def calls(source):
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call):
            keywords = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
            yield f"{source.relative_to(PACKAGE)}:{node.lineno}", ast.unparse(node.func), keywords


ALL_CALLS = [call for source in SOURCES for call in calls(source)]


def test_nothing_is_unpickled_that_could_run_code():
    faults = [
        (where, name)
        for where, name, keywords in ALL_CALLS
        if (name.endswith("torch.load") and keywords.get("weights_only") is not True)
        or keywords.get("weights_only", True) is not True
        or keywords.get("allow_pickle", False) is not False
        or name.split(".")[-1] in ("read_pickle", "Unpickler")
        or name in ("eval", "exec", "np.load", "numpy.load", "joblib.load", "marshal.loads")
    ]
    assert faults == []
    assert any(name == "torch.load" for _, name, _ in ALL_CALLS)


def test_modules_that_unpickle_are_not_imported():
    faults = []
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            faults += [(source.name, name) for name in names if name.split(".")[0] in UNPICKLING]
    # What a restricted reader raises; nothing else of it is named.
    assert faults == [("reading.py", "pickle")]
    reading = (PACKAGE / "training/checkpoints/reading.py").read_text()
    assert reading.count("pickle.") == reading.count("pickle.UnpicklingError") == 1


def test_whatever_transformers_loads_is_local_and_brings_no_code():
    loads = [
        call
        for call in ALL_CALLS
        if (call[1].endswith(".from_pretrained") or call[1].startswith("Auto")) and "super()" not in call[1]
    ]
    assert len(loads) >= 5
    for where, name, keywords in loads:
        if name.endswith(".register"):
            continue
        kind = name.split(".")[-2]
        assert keywords.get("local_files_only") is True, where
        if kind != "GenerationConfig":  # figures only, whatever its file says
            assert keywords.get("trust_remote_code") is False, where
        if kind not in WITHOUT_WEIGHTS:
            assert keywords.get("use_safetensors") is True, where


def plant(folder, name, auto_map, **changes):
    """Code beside a model, and a file that asks for it."""
    mark = folder.parent / "ran"
    for module in ("planted.py", "custom_generate/generate.py"):
        (folder / module).parent.mkdir(exist_ok=True)
        (folder / module).write_text(CODE.format(mark=str(mark)))
    content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**content, "auto_map": auto_map, **changes}))
    return mark


CONFIG = {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}


@pytest.mark.parametrize("command", ["generate", "export", "gguf"])
def test_model_that_brings_its_code_is_refused_without_asking(ava, plain, command, monkeypatch, tmp_path):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    mark = plant(plain, "config.json", CONFIG, model_type="brand_new")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "convert_hf_to_gguf.py").touch()
    arguments = {
        "generate": ["generate", "--model", plain, "--prompt", "To be"],
        "export": ["export", "--model", plain, "--to", "olmoe", "--output", tmp_path / "out"],
        "gguf": [
            "export",
            "--model",
            plain,
            "--to",
            "gguf",
            "--llama-cpp",
            tmp_path / "llama",
            "--output",
            tmp_path / "o",
        ],
    }[command]
    ended = ava(*arguments)
    assert ended.code == 1
    assert "asks for code of its own to be run (auto_map): Ava runs none" in ended.err
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "auto_map"),
    [
        ("config.json", CONFIG),
        ("tokenizer_config.json", {"AutoTokenizer": ["planted.Tokenizer", "planted.Tokenizer"]}),
        ("generation_config.json", {"AutoModelForCausalLM": "planted.Model"}),
    ],
)
def test_model_of_ours_is_read_by_our_code_whatever_it_names(plain, name, auto_map, monkeypatch):
    from ava_core.generation.loading import load_model

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    mark = plant(plain, name, auto_map)
    model, _ = load_model(plain)
    assert type(model).__module__.startswith("ava_core.") and type(model).generate.__module__.startswith(
        "transformers."
    )
    assert not mark.exists()


def test_export_leaves_out_what_asks_for_code(plain, tmp_path):
    """llama.cpp's converter reads the export with `trust_remote_code=True`, and the code may lie anywhere."""
    from ava_core.data.tokenizer import copy_tokenizer

    plant(plain, "tokenizer_config.json", {"AutoTokenizer": [None, f"{plain}--planted.Tokenizer"]})
    (tmp_path / "out").mkdir()
    copy_tokenizer(plain, tmp_path / "out", 128)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()
    exported = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "auto_map" not in exported and exported["eos_token"] == "<|endoftext|>"


def test_weights_that_are_a_pickle_are_not_read(plain):
    import torch
    from safetensors.torch import load_file

    from ava_core.generation.loading import load_model
    from ava_core.quantization.original import load_original

    torch.save(load_file(plain / "model.safetensors"), plain / "pytorch_model.bin")
    (plain / "model.safetensors").unlink()
    for load in (load_model, load_original):
        with pytest.raises((AvaError, IntegrityError), match=r"model\.safetensors"):
            load(plain)
