"""Dense models become mixtures of one expert, or by sparse upcycling of several, and compute what they did."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from ava_core.models.conversion import Upcycling, config_from_transformers, from_transformers
from tests.models.conversion.conftest import SHAPE, randomise

EXACT = {"rtol": 0, "atol": 1e-5}
DENSE = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
WIDTHS = {"intermediate_size": 24, "head_dim": 12}
COPIES = Upcycling(experts=6, experts_per_token=2)
SEGMENTS = Upcycling(experts=12, experts_per_token=6, granularity=3)


def make(kind, **overrides):
    config_class, model_class = DENSE[kind]
    fields = {key: value for key, value in SHAPE.items() if not key.startswith("num_experts")}
    return randomise(model_class(config_class(**{**fields, **WIDTHS, **overrides})))


@torch.no_grad()
def outputs(model, tokens):
    return model(tokens, output_router_logits=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("upcycling", [None, COPIES, SEGMENTS], ids=["one expert", "copies", "segments"])
@pytest.mark.parametrize("kind", DENSE)
def test_logits_are_those_of_the_dense_model(kind, upcycling, tied, tokens):
    theirs = make(kind, tie_word_embeddings=tied)
    ours = from_transformers(theirs, upcycling)
    expected = theirs(tokens).logits.detach()
    assert expected.std() > 0.5  # else any two models would be close
    torch.testing.assert_close(outputs(ours, tokens).logits, expected, **EXACT)
    assert ours.config.num_ffn_experts == (upcycling.experts if upcycling else 1)
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == tied


def test_tokens_spread_over_the_copies_and_take_all_segments_of_each_copy_that_they_choose(tokens):
    ours = from_transformers(make("llama"), SEGMENTS)
    for choices_TE in outputs(ours, tokens).router_choices:
        copies = choices_TE.unflatten(-1, (-1, SEGMENTS.granularity))
        assert torch.equal(copies.all(-1), copies.any(-1))
        assert torch.equal(copies.all(-1).sum(-1), torch.full((tokens.numel(),), 2))
        assert (copies.any(-1).sum(0) > 0).all()


def test_noise_is_relative_and_differs_between_experts(tokens):
    theirs = make("qwen3")
    ours = from_transformers(theirs, Upcycling(experts=3, experts_per_token=2, noise=0.1))
    down = ours.model.layers[0].moe.experts.down_proj
    dense = theirs.model.layers[0].mlp.down_proj.weight
    noise = down - dense
    torch.testing.assert_close(noise.std(dim=(1, 2)), (0.1 * dense.std()).expand(3), rtol=0.1, atol=0)
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.2
    assert (outputs(ours, tokens).logits - theirs(tokens).logits).abs().max() > 0.01


def test_seed_decides_the_router_and_the_noise():
    theirs = make("llama")

    def made(seed):
        model = from_transformers(theirs, Upcycling(experts=4, experts_per_token=2, noise=0.1, seed=seed))
        return model.state_dict()

    first, again, other = made(0), made(0), made(1)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    changed = {name.split(".", 3)[-1] for name, value in first.items() if not torch.equal(value, other[name])}
    assert changed == {"moe.gate.weight", "moe.experts.gate_up_proj", "moe.experts.down_proj"}


def test_upcycled_model_trains_its_router_and_its_experts_apart(tokens):
    ours = from_transformers(make("llama"), COPIES).train()
    ours(tokens, labels=tokens).loss.backward()
    moe = ours.model.layers[0].moe
    assert moe.gate.weight.grad.abs().max() > 0
    gradients = moe.experts.down_proj.grad
    assert all((gradients[0] - other).abs().max() > 0 for other in gradients[1:])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"experts": 0}, "experts = 0: must be a multiple of the granularity, 1"),
        ({"experts_per_token": 5}, "experts_per_token = 5: must be in 1 .. 4, the number of experts"),
        ({"granularity": 5}, "granularity = 5: must be a divisor of the feed-forward network's width, 24"),
        ({"granularity": 3}, "experts = 4: must be a multiple of the granularity, 3"),
        ({"granularity": 4, "experts_per_token": 2}, "experts_per_token = 2: must be a multiple of the granularity, 4"),
        ({"noise": -0.1}, "noise = -0.1: must be in [0, 1)"),
    ],
)
def test_numbers_that_dont_fit_are_refused(changes, message):
    with pytest.raises(ValueError) as caught:
        from_transformers(make("llama"), Upcycling(**{"experts": 4, "experts_per_token": 2, **changes}))
    assert str(caught.value) == message


def test_mixture_isnt_upcycled(make_theirs):
    with pytest.raises(ValueError, match="num_experts = 5: must be 1: only a dense model is upcycled"):
        from_transformers(make_theirs("olmoe"), COPIES)


@pytest.mark.parametrize(
    "kind, field, value",
    [
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "hidden_act", "gelu"),
        ("qwen3", "attention_bias", True),
        ("qwen3", "layer_types", ["full_attention", "sliding_attention"]),
    ],
)
def test_feature_that_ours_lacks_is_refused_by_name(kind, field, value):
    with pytest.raises(ValueError) as caught:
        config_from_transformers(make(kind, **{field: value}).config)
    assert str(caught.value).startswith(f"{field} = {value!r}: must be ") and "for Ava" in str(caught.value)


def test_adapter_beside_the_network_is_refused():
    theirs = make("llama")
    theirs.model.layers[1].mlp.adapter = nn.Linear(32, 2, bias=False)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.adapter\.weight = \(2, 32\): must be a parameter"):
        from_transformers(theirs, COPIES)
