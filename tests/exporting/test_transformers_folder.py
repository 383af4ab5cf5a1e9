import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from ava_core.cli.main import app
from ava_core.errors import AvaError
from ava_core.exporting.transformers_folder import export_model

FITTING = {
    "olmoe": {"qk_norm": "projection"},
    "mixtral": {"qk_norm": "none", "normalize_router_weights": True},
    "qwen3_moe": {"qk_norm": "head"},
}
NO_ZERO_COMPUTATION = {"num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0}


@pytest.fixture
def trained(write_model):
    """Write a model that fits a target; with changes of its configuration."""
    settings = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "vocab_size": 384, "dropout": 0.1}
    settings |= {"gating_residuals": False, "capacity_factor": 1.5, **NO_ZERO_COMPUTATION}
    return lambda target, **changes: write_model({**settings, **FITTING[target], **changes})


@torch.no_grad()
@pytest.mark.parametrize("target", FITTING)
def test_exported_folder_gives_the_logits_and_the_tokens(trained, tmp_path, target):
    folder = trained(target)
    export_model(folder, target, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == target
    assert not list((tmp_path / "out").glob("*.bin"))
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("To be, or not to be", return_tensors="pt").input_ids
    assert torch.equal(
        tokens, AutoTokenizer.from_pretrained(folder)("To be, or not to be", return_tensors="pt").input_ids
    )
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    context = AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length
    assert context == ours.config.max_position_embeddings
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_zero_experts": 1}, "num_zero_experts = 1"),
        ({"gating_residuals": True}, "gating_residuals = True"),
        ({"router": "confidence"}, "router = 'confidence'"),
        ({"num_shared_experts": 1}, "num_shared_experts = 1"),
        ({"qk_norm": "head"}, "qk_norm = 'head'"),
    ],
)
def test_what_the_target_lacks_is_refused_by_name_and_nothing_is_written(trained, tmp_path, changes, message):
    with pytest.raises(AvaError, match=message) as caught:
        export_model(trained("olmoe", **changes), "olmoe", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folder_that_is_there_is_not_overwritten(trained, tmp_path):
    with pytest.raises(AvaError, match="exists: give another --output"):
        export_model(trained("olmoe"), "olmoe", tmp_path)


def test_command_writes_the_folder_and_refuses_other_targets(trained, tmp_path):
    arguments = ["export", "--model", str(trained("olmoe")), "--output", str(tmp_path / "out")]
    assert CliRunner().invoke(app, [*arguments, "--to", "llama"]).exception is not None
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, [*arguments, "--to", "olmoe"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "model.safetensors").is_file()
