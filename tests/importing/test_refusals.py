"""What can't be imported is refused by name before any weights are read, and nothing is left."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.importing.importer import Import, ImportOptions
from ava_core.importing.weights import Checkpoint
from ava_core.models.conversion import Upcycling
from tests.importing.conftest import change, imported

SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
SCALED["original_max_position_embeddings"] = 32
COPIES = Upcycling(experts=4, experts_per_token=2)


def refusal(source, kind=AvaError, **options):
    with pytest.raises(kind) as caught:
        Import(str(source), ImportOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("olmoe", {"sliding_window": 64}, "sliding_window = 64: must be None for Ava: olmoe passes over it"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv = 8.0: must be None"),
        ("olmoe", {"attention_bias": True}, "attention_bias = True: must be False"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True: must be False for Ava: the experts have no bias"),
        ("llama", {"rope_parameters": SCALED}, "rope_parameters.rope_type = 'llama3': must be one of default"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu': must be 'silu'"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers = [1]: must be []"),
        (
            "olmoe",
            {"model_type": "gpt2"},
            "model_type = 'gpt2': must be one of olmoe, mixtral, qwen3_moe, llama, qwen3",
        ),
        ("olmoe", {"model_type": None}, "model_type = 'None': must be one of"),
        ("olmoe", {"quantization_config": {"bits": 4}}, "quantization_config: the weights are quantised"),
        ("olmoe", {"architectures": ["OlmoeForTokenClassification"]}, "must be a causal language model"),
    ],
)
def test_feature_that_ours_lacks_is_refused_without_a_look_at_the_weights(
    kind, changes, message, make_source, monkeypatch
):
    source = make_source(kind)
    change(source / "config.json", **changes)
    monkeypatch.setattr(Checkpoint, "__init__", None)
    assert message in refusal(source, upcycling=COPIES if kind == "llama" else None)


def test_unknown_architecture_with_code_of_its_own_is_told_that_it_never_runs(make_source):
    source = make_source("olmoe")
    change(source / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    assert "asks for code of its own to be run (auto_map), which never happens" in refusal(source)


def test_dense_model_needs_to_be_told_how_many_experts_and_a_mixture_must_not(sources):
    assert "llama is dense: give --experts" in refusal(sources("llama"), ConfigError)
    assert "has 4 experts per layer: only a dense model is upcycled" in refusal(
        sources("olmoe"), ConfigError, upcycling=COPIES
    )
    wrong = Upcycling(experts=4, experts_per_token=8)
    assert refusal(sources("llama"), ConfigError, upcycling=wrong).startswith(
        "--experts-per-token 8: must be in 1 .. 4"
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"context": 129}, "--context 129: must be 1 to 128, the model's own"),
        ({"sequence_length": 129}, "--sequence-length 129: must be 1 to 128, the model's context"),
        ({"context": 16, "sequence_length": 17}, "--sequence-length 17: must be 1 to 16"),
    ],
)
def test_lengths_beyond_the_context_are_refused(sources, options, message):
    assert refusal(sources("olmoe"), ConfigError, **options).startswith(message)


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "has no config.json, and there is no model in it: give a folder"),
        (["modeling.py"], "has no config.json, and modeling.py is code, which is never run"),
        (["pytorch_model.bin"], "has no config.json, and pytorch_model.bin is a pickle, which is never read"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter, not a model: give the model folder"),
    ],
)
def test_folder_that_holds_something_else_is_called_by_its_name(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_text("{}")
    assert message in refusal(tmp_path)


def test_folder_that_isnt_there_is_told_of_the_hub(tmp_path):
    assert refusal(tmp_path / "none").endswith(
        "no such folder: give one, or hub:OWNER/NAME for a model of the Hugging Face Hub"
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused_with_the_way_out(make_source, name):
    source = make_source("olmoe")
    (source / "model.safetensors").rename(source / name)
    assert f"{name}: is a pickle, which can run code" in refusal(source)
    assert "save_pretrained, which writes them" in refusal(source)


def test_tokenizer_that_needs_its_class_is_refused_with_the_way_out(make_source):
    source = make_source("olmoe")
    (source / "tokenizer.json").rename(source / "tokenizer.model")
    message = refusal(source)
    assert "has no tokenizer.json: only tokenizer.model, which needs the code of its class" in message
    (source / "tokenizer.model").unlink()
    assert "has no tokenizer.json: load it with Transformers' AutoTokenizer" in refusal(source)


def test_tokenizer_with_more_entries_than_the_model_has_rows_is_refused(make_source, tmp_path):
    source = make_source("olmoe", vocab_size=300)
    with pytest.raises(AvaError, match="has 384 entries, and the model's vocab_size is 300"):
        imported(source, tmp_path / "out")


def test_tokenizer_without_an_end_of_text_takes_the_models_or_one_in_use_or_is_refused(make_source, tmp_path):
    source = make_source("olmoe", eos_token_id=7)
    change(source / "tokenizer_config.json", eos_token=None)
    output = imported(source, tmp_path / "out")
    assert json.loads((output / "config.json").read_text())["eos_token_id"] == 7
    for name in ("config.json", "generation_config.json"):
        change(source / name, eos_token_id=None)
    output = imported(source, tmp_path / "in use")
    assert json.loads((output / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (source / name).read_text()
        (source / name).write_text(text.replace("<|endoftext|>", "<|nobody's|>"))
    with pytest.raises(AvaError, match="neither the tokenizer nor the model names a token that ends a text"):
        imported(source, tmp_path / "again")


def test_truncated_weights_are_refused(make_source):
    source = make_source("olmoe")
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[:-100])
    assert "model.safetensors: can't be read as safetensors" in refusal(source, IntegrityError)
    (source / "model.safetensors").write_bytes(content[:100])
    assert "model.safetensors: can't be read as safetensors" in refusal(source, IntegrityError)


def test_shard_that_is_missing_or_lacks_what_the_index_says_is_refused(make_source):
    source = make_source("olmoe", shard="80KB")
    first, second, *_ = sorted(source.glob("model-*.safetensors"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert f"{first.name}: lacks the tensor " in refusal(source, IntegrityError)
    first.unlink()
    assert f"{first.name}: is missing, though model.safetensors.index.json names it" in refusal(source, IntegrityError)
    first.write_bytes(content)
    index = source / "model.safetensors.index.json"
    change(index, weight_map={"lm_head.weight": "../elsewhere.safetensors"})
    assert "names the file '../elsewhere.safetensors': must be a safetensors beside it" in refusal(
        source, IntegrityError
    )
    index.write_text("[]")
    assert "model.safetensors.index.json: can't be read" in refusal(source, IntegrityError)


@pytest.mark.parametrize(
    "change_weights, message",
    [
        (lambda w: w.pop("model.norm.weight"), "model.norm.weight: must be in both models, but is missing"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(31)}),
            "model.norm.weight = (31,): must be (64,), by the configuration",
        ),
        (
            lambda w: w.pop("model.layers.1.mlp.experts.3.up_proj.weight"),
            "model.layers.1.mlp.experts.3.up_proj.weight: must be in both models, but is missing",
        ),
        (
            lambda w: w.update({"model.layers.0.mlp.shared.weight": torch.ones(2)}),
            "model.layers.0.mlp.shared.weight = (2,): must be a parameter that Ava's model has",
        ),
    ],
)
def test_weights_that_dont_fit_the_configuration_are_named(make_source, change_weights, message):
    source = make_source("olmoe")
    weights = load_file(source / "model.safetensors")
    change_weights(weights)
    save_file(weights, source / "model.safetensors")
    found = refusal(source, IntegrityError)
    assert message in found and found.endswith("the weights don't fit config.json")


def test_weights_of_integers_are_refused(make_source):
    source = make_source("olmoe")
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    save_file(weights, source / "model.safetensors")
    assert "model.norm.weight is I8: must be one of F64, F32, F16, BF16" in refusal(source)


@pytest.mark.parametrize("value, word", [(float("nan"), "nan"), (float("inf"), "infinity")])
def test_weight_that_is_no_number_is_named(make_source, tmp_path, value, word):
    source = make_source("olmoe")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.experts.2.down_proj.weight"][3, 4] = value
    save_file(weights, source / "model.safetensors")
    with pytest.raises(IntegrityError, match=rf"layers\.1\.mlp\.experts\.2\.down_proj\.weight: holds {word}: no model"):
        imported(source, tmp_path / "out")


def test_configuration_that_isnt_one_is_refused(make_source):
    source = make_source("olmoe")
    change(source / "config.json", num_attention_heads="four")
    assert "config.json: can't be understood" in refusal(source, IntegrityError)
    (source / "config.json").write_text("{")
    assert "config.json: is no JSON" in refusal(source, IntegrityError)


def test_source_that_changes_while_it_is_read_is_refused(make_source, tmp_path):
    from ava_core.progress import Progress

    source = make_source("olmoe")
    importing = Import(str(source), ImportOptions())
    change(source / "generation_config.json", top_k=3)
    (tmp_path / "out").mkdir()
    with pytest.raises(AvaError, match="was changed while it was read"):
        importing.write(tmp_path / "out", Progress(quiet=True))
