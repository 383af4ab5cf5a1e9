"""GGUF by llama.cpp's converter: a stand-in shows what happens around it, the real one what comes out.

The real one comes from the source of llama-cpp-python, fetched from the package index, or from AVA_LLAMA_CPP, a folder
with llama.cpp's source. Nothing of it is compiled: that takes longer than all other tests; `benchmarks.llama_cpp` does.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ava_core.cli.main import app
from ava_core.errors import AvaError
from ava_core.exporting.gguf import export_gguf

PACKAGE = "llama-cpp-python==0.3.36"
SETTINGS = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "num_ffn_experts": 4,
    "expert_intermediate_size": 64,
    "num_zero_experts": 0,
    "num_copy_experts": 0,
    "num_constant_experts": 0,
    "gating_residuals": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
FITTING = {
    "olmoe": {"qk_norm": "projection", "rms_norm_eps": 1e-5, "num_key_value_heads": 4},
    "mixtral": {"qk_norm": "none", "normalize_router_weights": True},
    "qwen3_moe": {"qk_norm": "head", "normalize_router_weights": True},
}


@pytest.fixture
def trained(write_model):
    """Write a model that fits a target; with changes of its configuration."""
    return lambda target, **changes: write_model({**SETTINGS, **FITTING[target], **changes})


@pytest.fixture
def stand_in(tmp_path):
    """A folder with the files of llama.cpp that are imported, and a converter that does what `body` says."""

    def make(body: str) -> Path:
        folder = tmp_path / "llama.cpp"
        (folder / "conversion").mkdir(parents=True)
        (folder / "conversion" / "__init__.py").touch()
        (folder / "conversion" / "base.py").write_text("class TextModel:\n    def _set_vocab_gpt2(self): ...\n")
        (folder / "conversion" / "llama.py").write_text("class LlamaModel: ...\n")
        (folder / "convert_hf_to_gguf.py").write_text(f"import sys\nfrom pathlib import Path\n{body}\n")
        return folder

    return make


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory) -> Path:
    if "AVA_LLAMA_CPP" in os.environ:
        return Path(os.environ["AVA_LLAMA_CPP"])
    folder = tmp_path_factory.mktemp("llama_cpp")
    # The wish to know a package's name makes pip run its build: that needs its build tool and compiles nothing.
    tool = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder / "tool"), "scikit-build-core"]
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    fetch += ["--no-build-isolation", "--dest", str(folder), PACKAGE]
    environment = os.environ | {"PYTHONPATH": str(folder / "tool")}
    for command in (tool, fetch):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
        if done.returncode:
            pytest.skip(f"{PACKAGE} can't be fetched: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        # Pythons before 3.11.4 have no filters.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


def test_converter_gets_the_export_and_its_file_appears_whole(trained, stand_in, tmp_path):
    body = "Path(sys.argv[sys.argv.index('--outfile') + 1]).write_text(' '.join([*sys.argv[1:2], *sys.argv[4:]]))"
    target = export_gguf(trained("olmoe"), tmp_path / "out" / "model.gguf", stand_in(body), "q8_0")
    source, *options = (tmp_path / "out" / "model.gguf").read_text().split()
    assert (target, options) == ("olmoe", ["--outtype", "q8_0"])
    assert not Path(source).exists(), "the export was for the converter only"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.gguf"]


def test_converter_that_fails_is_told_in_one_line_and_leaves_nothing(trained, stand_in, tmp_path):
    broken = stand_in("Path(sys.argv[3]).write_text('half')\nsys.exit('tensor 7 is not supported')")
    with pytest.raises(AvaError, match=r"convert_hf_to_gguf\.py: exit 1: .*tensor 7 is not supported") as caught:
        export_gguf(trained("olmoe"), tmp_path / "out" / "model.gguf", broken, "f16")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("target", "changes", "message"),
    [
        ("olmoe", {"normalize_router_weights": True}, "normalize_router_weights = True: must be false"),
        ("olmoe", {"rms_norm_eps": 1e-6}, "rms_norm_eps = 1e-06: must be 1e-5"),
        ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads = 2: must be num_attention_heads"),
        ("qwen3_moe", {"normalize_router_weights": False}, "normalize_router_weights = False: must be true"),
        ("mixtral", {"normalize_router_weights": False}, "normalize_router_weights = False: must be true"),
        ("qwen3_moe", {"num_zero_experts": 1}, "num_zero_experts = 1"),
    ],
)
def test_what_llama_cpp_computes_in_another_way_is_refused(trained, stand_in, tmp_path, target, changes, message):
    with pytest.raises(AvaError, match=message):
        export_gguf(trained(target, **changes), tmp_path / "model.gguf", stand_in("raise AssertionError"), "f16")
    assert not (tmp_path / "model.gguf").exists()


def test_words_split_in_another_way_are_refused(trained, stand_in, tmp_path):
    folder = trained("olmoe")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        text.replace('"use_regex":true', '"use_regex":false').replace('"use_regex": true', '"use_regex": false')
    )
    with pytest.raises(AvaError, match="only GPT-2's byte-level one converts"):
        export_gguf(folder, tmp_path / "model.gguf", stand_in("raise AssertionError"), "f16")


def test_folder_without_a_converter_and_a_file_that_is_there_are_refused(trained, tmp_path):
    with pytest.raises(AvaError, match=r"give the folder of llama\.cpp.s source"):
        export_gguf(trained("olmoe"), tmp_path / "model.gguf", tmp_path, "f16")
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(AvaError, match="exists: give"):
        export_gguf(tmp_path / "trained", tmp_path / "model.gguf", tmp_path, "f16")
    assert (tmp_path / "model.gguf").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "gguf"], "--llama-cpp"),
        (["--to", "olmoe", "--llama-cpp", "."], "--llama-cpp"),
        (["--to", "gguf", "--llama-cpp", ".", "--gguf-type", "q3"], "--gguf-type q3"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, message):
    arguments = ["export", "--model", str(tmp_path), "--output", str(tmp_path / "out"), *options]
    assert message in str(CliRunner().invoke(app, arguments).exception)


@pytest.mark.slow
@pytest.mark.parametrize("target", FITTING)
def test_real_converter_keeps_every_weight_and_every_token(trained, llama_cpp, tmp_path, target):
    """Names are llama.cpp's; each matrix of ours is there once, with the same values (q and k of Mixtral reordered)."""
    folder = trained(target)
    assert export_gguf(folder, tmp_path / "model.gguf", llama_cpp, "f32") == target
    report = subprocess.run(
        [sys.executable, "-c", _READ, str(llama_cpp / "gguf-py"), str(tmp_path / "model.gguf"), str(tmp_path / "read")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.returncode == 0, report.stderr
    found = load_file(tmp_path / "read")
    ours = load_file(folder / "model.safetensors")
    assert _sorted_values(found["token_embd.weight"]) == _sorted_values(ours["model.embed_tokens.weight"])
    torch.testing.assert_close(found["output.weight"], found["token_embd.weight"], atol=0, rtol=0)
    for layer in range(SETTINGS["num_layers"]):
        gate_up = ours[f"model.layers.{layer}.moe.experts.gate_up_proj"]
        gate, up = gate_up.chunk(2, dim=1)
        torch.testing.assert_close(found[f"blk.{layer}.ffn_gate_exps.weight"], gate, atol=0, rtol=0)
        torch.testing.assert_close(found[f"blk.{layer}.ffn_up_exps.weight"], up, atol=0, rtol=0)
        query = ours[f"model.layers.{layer}.self_attn.q_proj.weight"]
        assert _sorted_values(found[f"blk.{layer}.attn_q.weight"]) == _sorted_values(query)
    assert "pre gpt-2" in report.stdout
    assert f"tokens {SETTINGS['vocab_size']}" in report.stdout


def _sorted_values(tensor: torch.Tensor) -> list[float]:
    return sorted(tensor.flatten().tolist())


# In a process of its own, for llama.cpp's `gguf` is no dependency of ours.
_READ = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from gguf import GGUFReader
from safetensors.torch import save_file
reader = GGUFReader(sys.argv[2])
print("pre", reader.get_field("tokenizer.ggml.pre").contents())
print("tokens", len(reader.get_field("tokenizer.ggml.tokens").contents()))
save_file({one.name: torch.from_numpy(one.data.copy()) for one in reader.tensors}, sys.argv[3])
"""
