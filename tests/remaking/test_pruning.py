"""`ava prune`: what is left of a model computes what the model would without the experts that are gone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ava_core.data.shards import ShardedSplit
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.remaking.calibration import CLOSED, CalibrationText, effects, left_out, loads
from ava_core.remaking.pruning import choose, kept_columns, prune, pruned_config
from ava_core.remaking.repair import repair
from ava_core.runtime import manifest
from tests.cli.conftest import ava  # noqa: F401  a fixture
from tests.conftest import _finished as finished

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_layers": 3,
    "num_attention_heads": 2,
    "num_ffn_experts": 6,
    "expert_intermediate_size": 12,
    "num_experts_per_token": 3,
}
ROUTERS = {
    "top_k": {},
    "normalised": {"normalize_router_weights": True, "num_shared_experts": 1},
    "confidence": {"router": "confidence", "confidence_threshold": 0.8, "max_experts_per_token": None},
    "expert_bias": {"router": "expert_bias"},
    "sinkhorn": {"router": "sinkhorn", "gating_residuals": False},
    "hierarchical": {
        "router": "hierarchical",
        "num_expert_groups": 2,
        "num_groups_per_token": 1,
        "num_experts_per_token": 2,
        "num_zero_experts": 0,
        "num_copy_experts": 0,
        "num_constant_experts": 0,
    },
}


def build(**changes):
    torch.manual_seed(0)
    model = EnhancedMoEForCausalLM(EnhancedMoEConfig(**SMALL | changes)).eval()
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if "gate" in name or "expert" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def masked(model, removed):
    """Close the routers to the removed experts, and zero their logits where the next layer's gate reads them."""
    handles = []
    first = model.config.num_logits - model.config.num_experts
    for index, layer in enumerate(model.model.layers):
        own = [first + expert for expert in removed[index]]

        def close(_router, arguments, own=own):
            logits = arguments[0].clone()
            logits[:, own] = CLOSED
            return (logits, *arguments[1:])

        def zero(_gate, arguments, before=[first + e for e in removed[index - 1]] if index else []):
            x, previous = arguments
            if previous is not None:
                previous = previous.clone()
                previous[:, before] = 0
            return x, previous

        handles += [
            layer.moe.router.register_forward_pre_hook(close),
            layer.moe.gate.register_forward_pre_hook(zero),
        ]
        if hasattr(layer.moe.router, "expert_bias"):
            layer.moe.router.expert_bias[removed[index]] = CLOSED
    return handles


@pytest.mark.parametrize("router", ROUTERS)
def test_pruned_model_computes_what_the_model_does_with_these_experts_masked(router):
    model, tokens = build(**ROUTERS[router]), torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
    scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(2))
    removed = choose(scores, model.config, 4)
    pruned = prune(model, pruned_config(model.config, 4), removed)
    with torch.no_grad():
        whole, ours = model(tokens).logits, pruned(tokens).logits
        masked(model, removed)
        theirs = model(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
    assert (whole - theirs).abs().max() > 1e-3
    assert all(len(layer) == 2 for layer in removed) and len({tuple(layer) for layer in removed}) > 1


def test_lowest_scores_go_and_of_equal_groups_as_many_from_each():
    scores = torch.tensor([[0.1, 0.2, 0.0, 0.9, 0.8, 0.7]])
    assert choose(scores, EnhancedMoEConfig(**SMALL), 4) == [[0, 2]]
    grouped = EnhancedMoEConfig(**SMALL | ROUTERS["hierarchical"])
    assert choose(scores, grouped, 4) == [[2, 5]]
    assert kept_columns(grouped, [2, 5]) == [0, 1, 2, 3, 5, 6]


def test_what_cannot_be_removed_is_refused_by_name():
    config = EnhancedMoEConfig(**SMALL)
    for left in (0, 6, 9):
        with pytest.raises(ConfigError, match=rf"--experts {left}: the model has 6 FFN experts"):
            pruned_config(config, left)
    bare = EnhancedMoEConfig(**SMALL | {"num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0})
    with pytest.raises(ConfigError, match=r"--experts 2: num_experts_per_token = 3: must be <= 2"):
        pruned_config(bare, 2)
    confident = EnhancedMoEConfig(**SMALL | {"router": "confidence", "max_experts_per_token": 8})
    assert pruned_config(confident, 2).max_experts_per_token == 6
    grouped = EnhancedMoEConfig(**SMALL | ROUTERS["hierarchical"])
    with pytest.raises(ConfigError, match=r"num_expert_groups = 2 of equal size: the 1 experts to remove"):
        pruned_config(grouped, 5)
    # The second group holds the zero-computation experts, of which none goes.
    mixed = EnhancedMoEConfig(**SMALL | {"router": "hierarchical", "num_expert_groups": 2, "num_zero_experts": 3})
    with pytest.raises(ConfigError, match=r"group 1 of the router has 0 FFN experts of 6: 1 can't be removed"):
        choose(torch.rand(3, 6), mixed, 4)


@pytest.fixture(scope="module")
def learnt(tiny_model, tiny_shards):
    model = EnhancedMoEForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    return model, CalibrationText(ShardedSplit.open(tiny_shards, "train"), 64, 24)


def test_scores_are_the_share_of_tokens_and_the_growth_of_the_loss(learnt):
    model, text = learnt
    share = loads(model, text)
    assert share.shape == (2, 4) and (share >= 0).all() and (share.sum(1) <= 2).all() and share.std() > 0
    told = []
    effect = effects(model, text, told.append)
    with left_out(model, 1, [2]):
        without = text.loss(model)
    assert effect[1, 2] == pytest.approx(without - text.loss(model), abs=1e-6) and told[-1] == 8
    assert effect.max() > 0.005


def test_refit_brings_the_layers_nearer_to_the_models_and_the_loss_down(learnt):
    model, text = learnt
    config = pruned_config(model.config, 2)
    removed = choose(loads(model, text), model.config, 2)
    pruned = prune(model, config, removed)
    before, told = text.loss(pruned), []
    repair(model, pruned, [kept_columns(model.config, gone) for gone in removed], text, told.append)
    assert told == [1, 2]
    assert text.loss(model) < text.loss(pruned) < before


def test_command_leaves_a_model_that_later_commands_take(ava, tmp_path, tiny_model, tiny_shards, make_params):  # noqa: F811
    words = ("prune", "--model", tiny_model, "--shards", tiny_shards, "--sequences", 16, "--quiet")
    result = ava(*words, "--share", 0.25, "--by", "effect", "--output", tmp_path / "pruned")
    assert result.code == 0, result.err
    made = manifest.verify(tmp_path / "pruned", "prune")
    assert made.inputs["model"] == manifest.read(tiny_model).digest
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["num_ffn_experts"] == 3
    record = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert [len(layer) for layer in record["removed"]] == [1, 1] and record["experts"] == "3"
    again = ava(*words, "--experts", 3, "--by", "effect", "--output", tmp_path / "again")
    assert again.code == 0
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("pruned", "again"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    begun = ava(
        *(
            "train",
            "--params",
            make_params(model={"num_ffn_experts": 3}, train={"steps": 2}),
            "--shards",
            tiny_shards,
            "--init",
            tmp_path / "pruned",
        ),
        *("--output", tmp_path / "next", "--work", tmp_path / "work", "--quiet"),
    )
    assert begun.code == 0, begun.err
    assert json.loads((tmp_path / "next" / "config.json").read_text())["num_ffn_experts"] == 3


def test_shards_of_less_than_a_window_are_refused(ava, tmp_path, tiny_model, tiny_shards):  # noqa: F811
    longer = tmp_path / "longer"
    shutil.copytree(tiny_model, longer)
    record = json.loads((longer / "training.json").read_text()) | {"sequence_length": 10**6}
    (longer / "training.json").write_text(json.dumps(record))
    (longer / manifest.NAME).unlink()
    finished(longer, "train", {})
    result = ava("prune", "--model", longer, "--shards", tiny_shards, "--experts", 2, "--output", tmp_path / "pruned")
    assert result.code == 1 and "must be at least the 1000000 of a window" in result.err, result.err


def test_wrong_flags_are_refused_in_a_line(ava, tmp_path, tiny_model, tiny_shards):  # noqa: F811
    flipped = tmp_path / "flipped"
    shutil.copytree(tiny_model, flipped)
    file = flipped / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    cases = [
        (tiny_model, (), 2, "--experts, --share: give one of them"),
        (tiny_model, ("--experts", 2, "--share", 0.5), 2, "--experts, --share: give one of them"),
        (tiny_model, ("--share", 1.5), 2, "--share 1.5: must be between 0 and 1"),
        (tiny_model, ("--share", 0.01), 2, "--share 0.01: is less than one of the 4 FFN experts"),
        (tiny_model, ("--experts", 4), 2, "--experts 4: the model has 4 FFN experts per layer"),
        (tiny_model, ("--experts", 2, "--by", "name"), 2, "--by name: must be one of load, effect"),
        (tiny_model, ("--experts", 2, "--repair", "hope"), 2, "--repair hope: must be one of refit, none"),
        (tiny_shards, ("--experts", 2), 1, "is the output of `ava preprocess`"),
        (flipped, ("--experts", 2), 1, "its bytes are not those"),
    ]
    for model, words, code, line in cases:
        result = ava(
            "prune", "--model", model, "--shards", tiny_shards, *words, "--output", tmp_path / "pruned", "--quiet"
        )
        assert result.code == code and line in result.err and len(result.err.splitlines()) == 1, result.err
        assert not (tmp_path / "pruned").exists()
