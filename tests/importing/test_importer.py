"""An imported model computes what its source does, and says where it comes from."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ava_core.generation.loading import load_model
from ava_core.models.conversion import PEERS, SOURCES, Upcycling
from ava_core.origin import read_origin
from tests.importing.conftest import change, finish, imported, logits

EXACT = {"rtol": 0, "atol": 1e-5}
COPIES = Upcycling(experts=4, experts_per_token=2)


@pytest.mark.parametrize("kind", SOURCES)
def test_logits_and_tokens_are_those_of_the_source(kind, sources, tmp_path, tokens):
    source = sources(kind)
    output = imported(source, tmp_path / "out", upcycling=COPIES if SOURCES[kind].dense else None)
    model, tokenizer = load_model(output)
    expected = logits(source, tokens)
    assert expected.std() > 0.5  # else any two models would be close
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, expected, **EXACT)
    text = "To be, or not to be \u2014 that\n is: 12"
    assert tokenizer(text).input_ids == AutoTokenizer.from_pretrained(source)(text).input_ids


@pytest.mark.parametrize("kind", PEERS)
def test_experts_that_are_stacked_in_the_file_and_spread_over_shards_give_the_same_bytes(kind, make_source, tmp_path):
    source = make_source(kind, shard="80KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    split = imported(source, tmp_path / "split")
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for path in source.glob("model*.safetensors*"):
        path.unlink()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, source / "model.safetensors")
    stacked = imported(source, tmp_path / "stacked")
    assert (split / "model.safetensors").read_bytes() == (stacked / "model.safetensors").read_bytes()


def test_weights_are_the_files_that_the_library_would_write(sources, tmp_path):
    output = imported(sources("qwen3_moe"), tmp_path / "out")
    weights = load_file(output / "model.safetensors")
    save_file(weights, tmp_path / "again.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "again.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "have, asked, expected",
    [("bfloat16", "", "bfloat16"), ("bfloat16", "float32", "float32"), ("float16", "", "float32")],
)
def test_dtype_is_the_sources_or_what_is_asked_for(have, asked, expected, make_source, tmp_path, tokens):
    source = make_source("olmoe", dtype=getattr(torch, have))
    output = imported(source, tmp_path / "out", dtype=asked)
    kinds = {value.dtype for value in load_file(output / "model.safetensors").values()}
    assert kinds == {getattr(torch, expected)}
    torch.testing.assert_close(logits(output, tokens), logits(source, tokens), **EXACT)  # nothing was rounded


def test_rounding_to_bfloat16_is_said(sources, tmp_path):
    output = imported(sources("olmoe"), tmp_path / "out", dtype="bfloat16")
    assert "weights from float32 to bfloat16" in read_origin(output).changes


def test_tied_head_that_is_stored_twice_is_dropped_and_another_one_refused(make_source, tmp_path, tokens):
    from ava_core.errors import IntegrityError

    source = make_source("qwen3", tie_word_embeddings=True)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, source / "model.safetensors")
    output = imported(source, tmp_path / "out", upcycling=COPIES)
    assert "lm_head.weight" not in load_file(output / "model.safetensors")
    torch.testing.assert_close(logits(output, tokens), logits(source, tokens), **EXACT)
    weights["lm_head.weight"][3] += 1
    save_file(weights, source / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"tie_word_embeddings = True, but lm_head\.weight is not the embedding"):
        imported(source, tmp_path / "again", upcycling=COPIES)


def test_dense_model_of_ours_is_upcycled(tmp_path, tiny_shards, tokens):
    from tests.conftest import TINY_MODEL

    source = _ours(tmp_path / "ours", tiny_shards, TINY_MODEL | DENSE)
    output = imported(source, tmp_path / "out", upcycling=Upcycling(experts=8, experts_per_token=4, granularity=2))
    model, _ = load_model(output)
    assert (model.config.num_ffn_experts, model.config.expert_intermediate_size) == (8, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, logits(source, tokens), **EXACT)


DENSE = {
    "num_ffn_experts": 1,
    "num_experts_per_token": 1,
    "num_zero_experts": 0,
    "num_copy_experts": 0,
    "num_constant_experts": 0,
    "gating_residuals": False,
}


def _ours(folder, shards, fields):
    from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM

    torch.manual_seed(0)
    EnhancedMoEForCausalLM(EnhancedMoEConfig(vocab_size=384, initializer_range=0.2, **fields)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(shards / "tokenizer" / name, folder / name)
    return folder


def test_model_of_ours_that_transformers_resized_comes_back_with_what_was_changed(tiny_model, tmp_path, tokens):
    source = tmp_path / "resized"
    shutil.copytree(tiny_model, source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.resize_token_embeddings(400)
    model.save_pretrained(source)
    output = finish(source, tmp_path / "out")
    loaded, _ = load_model(output)
    assert loaded.config.vocab_size == 400
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, **EXACT)
    origin = read_origin(output)
    assert origin.changes[0].startswith("made by `ava train` (key test-train), then config.json")
    assert "model.safetensors" in origin.changes[0] and "tokenizer.json" not in origin.changes[0]
    made_from = json.loads((output / "manifest.json").read_text())["made_from"]
    assert made_from == {"source": json.loads((tiny_model / "manifest.json").read_text())["sha256"]}
    assert json.loads((output / "training.json").read_text())["sequence_length"] == 64, "as it was trained"


def test_imported_model_that_is_imported_again_keeps_its_origin(sources, tmp_path):
    first = finish(sources("llama"), tmp_path / "first", upcycling=Upcycling(experts=1, experts_per_token=1))
    second = finish(first, tmp_path / "second", upcycling=COPIES)
    origin = read_origin(second)
    assert (origin.name, origin.architecture, origin.before["source"]["name"]) == ("first", "ava_moe", "llama")


def test_origin_names_every_file_and_no_place_on_this_machine(make_source, tmp_path):
    source = make_source("olmoe")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (source / "LICENSE").write_text("Apache License\n")
    (source / "modeling_own.py").write_text("raise SystemExit")
    output = finish(source, tmp_path / "out")
    origin = read_origin(output)
    assert origin.licence == {"id": "apache-2.0", "stated": "README.md"}
    assert (output / "LICENSE").read_text() == "Apache License\n"
    assert set(origin.files) == {path.name for path in source.iterdir()} - {"modeling_own.py"}
    assert not (output / "modeling_own.py").exists()
    for path in output.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path


def test_two_imports_give_the_same_bytes(sources, tmp_path):
    options = {"upcycling": Upcycling(experts=4, experts_per_token=2, noise=0.1)}
    first, second = (finish(sources("llama"), tmp_path / name, **options) for name in ("first", "second"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_token_that_ends_a_text_is_the_tokenizers(make_source, tmp_path):
    source = make_source("olmoe", eos_token_id=5, pad_token_id=None)
    output = imported(source, tmp_path / "out")
    config = json.loads((output / "config.json").read_text())
    generation = json.loads((output / "generation_config.json").read_text())
    assert config["eos_token_id"] == generation["eos_token_id"] == 0
    assert config["pad_token_id"] == generation["pad_token_id"] == 1


def test_list_of_ends_with_the_tokenizers_among_them_stays(make_source, tmp_path):
    source = make_source("qwen3_moe", eos_token_id=[7, 0])
    output = imported(source, tmp_path / "out")
    assert json.loads((output / "config.json").read_text())["eos_token_id"] == [7, 0]
    assert json.loads((output / "generation_config.json").read_text())["eos_token_id"] == [7, 0]


def test_tokenizer_without_padding_pads_with_the_end_and_leaves_its_embedding_trained(make_source, tmp_path):
    source = make_source("olmoe", pad_token_id=None)
    change(source / "tokenizer_config.json", pad_token=None)
    model, tokenizer = load_model(imported(source, tmp_path / "out"))
    assert (tokenizer.pad_token_id, model.config.pad_token_id) == (0, None)
    assert model.model.embed_tokens.padding_idx is None


def test_template_of_chats_is_taken_along(make_source, tmp_path):
    source = make_source("olmoe")
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    _, tokenizer = load_model(imported(source, tmp_path / "out"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hail"}], tokenize=False) == "Hail!"


def test_context_can_be_shortened_and_computes_the_same_within_it(sources, tmp_path, tokens):
    output = imported(sources("mixtral"), tmp_path / "out", context=32)
    assert json.loads((output / "config.json").read_text())["max_position_embeddings"] == 32
    assert json.loads((output / "training.json").read_text())["sequence_length"] == 32
    torch.testing.assert_close(logits(output, tokens), logits(sources("mixtral"), tokens), **EXACT)


def test_code_that_a_known_model_brings_is_ignored(make_source, tmp_path):
    source = make_source("olmoe")
    (source / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    change(source / "config.json", auto_map={"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.Config"})
    change(source / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    output = imported(source, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((output / name).read_text())
