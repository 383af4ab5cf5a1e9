import pytest
import torch
from transformers.cache_utils import StaticCache

from ava_core.errors import AvaError, IntegrityError
from ava_core.onnx.graph import GRAPH_FILE, WEIGHTS_FILE
from ava_core.onnx.runtime import load_onnx

STRATEGIES = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 3},
    "nucleus": {"do_sample": True, "top_p": 0.9, "temperature": 0.8},
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_every_strategy_continues_padded_prompts_as_pytorch_does(make_model, export, strategy):
    original = make_model()
    model = export(original)
    ids = torch.randint(0, 101, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    texts = []
    for candidate in (original, model):
        torch.manual_seed(3)
        texts.append(candidate.generate(ids, attention_mask=mask, max_new_tokens=12, pad_token_id=0, **strategy))
    assert torch.equal(*texts)
    assert texts[0].shape == (2, 21)


def test_cache_goes_back_where_guessed_tokens_were_wrong(make_model, export):
    model = export(make_model())
    ids = torch.randint(0, 101, (1, 6), generator=torch.Generator().manual_seed(2)).repeat(1, 2)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), model.generate(ids, **options))


def test_generation_with_and_without_the_cache_agrees(make_model, export):
    model = export(make_model(), 8)
    ids = torch.randint(0, 101, (1, 5), generator=torch.Generator().manual_seed(2))
    texts = [
        model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*texts)


def test_the_saved_generation_settings_are_used(make_model, export):
    original = make_model(eos_token_id=7, pad_token_id=1)
    export(original)
    original.generation_config.max_new_tokens = 3
    original.generation_config.save_pretrained(export.folder)
    model = load_onnx(export.folder, threads=1)
    assert model.generation_config.eos_token_id == 7
    assert model.generate(torch.tensor([[5, 6]]), do_sample=False).shape[1] <= 5


@pytest.mark.parametrize("name", [GRAPH_FILE, WEIGHTS_FILE, "config.json"])
def test_a_missing_file_is_named(make_model, export, name):
    export(make_model())
    (export.folder / name).unlink()
    with pytest.raises(AvaError, match=rf"{name}: no such file: give the output folder of `ava quantize`") as caught:
        load_onnx(export.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kept"), [(GRAPH_FILE, 0.5), (WEIGHTS_FILE, 0.5), ("config.json", 0.5), (GRAPH_FILE, 0)]
)
def test_a_truncated_file_is_refused_in_one_line(make_model, export, name, kept):
    export(make_model())
    path = export.folder / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(IntegrityError, match="run `ava quantize` again") as caught:
        load_onnx(export.folder)
    assert "\n" not in str(caught.value)


def test_what_the_graph_cannot_take_is_refused(make_model, export):
    original = make_model()
    model, ids = export(original), torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="labels: an ONNX model takes input_ids only"):
        model(ids, labels=ids)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 2\): must be \(1, 3\)"):
        model(ids, attention_mask=torch.ones(1, 2))
    with pytest.raises(ValueError, match="must be an empty DynamicCache"):
        model(ids, past_key_values=StaticCache(config=original.config, max_cache_len=8), use_cache=True)
    with pytest.raises(AvaError, match="can't be saved from memory"):
        model.save_pretrained("anywhere")
    seen = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="document_ids: must be None"):
        model(ids, past_key_values=seen, document_ids=torch.zeros(1, 3, dtype=torch.long))


def test_routing_is_returned_only_when_asked_for(make_model, export):
    model, ids = export(make_model()), torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert model(ids).router_choices is None
    found = model(ids, output_router_logits=True)
    assert len(found.router_choices) == len(found.router_logits) == 3
    assert found.router_choices[0].shape == (6, model.config.num_experts)
    assert found.router_choices[0].dtype == torch.bool
    assert (found.router_choices[0].sum(-1) == model.config.num_experts_per_token).all()
