"""`ava merge`: what comes of a base and an adapter, and which adapters it refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ava_core.adapters.folder import read_adapter
from ava_core.adapters.layers import add_adapter, merge_adapter, peft_config
from ava_core.adapters.merging import Merge
from ava_core.cli.main import app
from ava_core.config.adapter import AdapterConfig
from ava_core.errors import AvaError, IntegrityError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_tree
from tests.adapters.conftest import TOKENS, adapted

RUNNER = CliRunner()


def merge(base, adapter, output, *more):
    words = ["merge", "--model", base, "--adapter", adapter, "--output", output, "--quiet", *more]
    return RUNNER.invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("lora", ["attention"]),
        ("lora", ["experts"]),
        ("lora", ["router"]),
        ("lora", ["shared"]),
        ("dora", ["attention", "shared"]),
        ("lora", ["attention", "experts", "router", "shared"]),
    ],
)
def test_merged_weights_give_the_logits_of_the_adapter(tmp_path, kind, targets):
    torch.manual_seed(0)
    config = EnhancedMoEConfig(
        hidden_size=32, num_layers=2, num_attention_heads=2, num_key_value_heads=1, num_ffn_experts=4,
        expert_intermediate_size=32, num_constant_experts=1, num_shared_experts=1, vocab_size=64,
    )  # fmt: skip
    EnhancedMoEForCausalLM(config).save_pretrained(tmp_path / "base")
    base = EnhancedMoEForCausalLM.from_pretrained(tmp_path / "base").eval()
    model, _ = adapted(tmp_path / "base", kind=kind, targets=targets)
    with torch.no_grad():
        before, expected = base(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits
        merge_adapter(model)
        found = model(input_ids=TOKENS).logits
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert model.state_dict().keys() == base.state_dict().keys()


def test_updates_that_were_never_trained_leave_every_bit(tiny_model):
    base = EnhancedMoEForCausalLM.from_pretrained(tiny_model)
    model = EnhancedMoEForCausalLM.from_pretrained(tiny_model)
    add_adapter(model, peft_config(AdapterConfig(kind="lora", targets=["attention", "experts", "router"])))
    merge_adapter(model)
    assert all(value.equal(model.state_dict()[name]) for name, value in base.state_dict().items())


def test_command_makes_a_model_that_every_other_takes_and_leaves_the_base_alone(tiny_model, make_adapter, tmp_path):
    before = digest_tree(tiny_model)
    folder, expected = make_adapter(targets=["attention", "experts", "router"])
    result = merge(tiny_model, folder, tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert "with a LoRA of rank 2" in result.output
    assert digest_tree(tiny_model) == before
    found = manifest.verify(tmp_path / "merged", "merge")
    assert found.inputs == {"init": manifest.read(tiny_model).digest, "adapter": read_adapter(folder).digest}
    model = EnhancedMoEForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=TOKENS).logits, expected, atol=1e-5, rtol=0)
    record = json.loads((tmp_path / "merged" / "training.json").read_text())
    assert record["sequence_length"] == 64 and record["parent"]["model"] == found.inputs["init"]
    settings = [f"train.init={tmp_path / 'merged'}", "train.sequence_length=64"]
    flags = [word for setting in settings for word in ("--set", setting)]
    shown = RUNNER.invoke(app, ["config", "show", "--params-yaml", "{}", *flags])
    assert shown.exit_code == 0 and "hidden_size: 32" in shown.output  # a training may begin from it
    again = merge(tiny_model, folder, tmp_path / "merged")
    assert again.exit_code == 0 and manifest.verify(tmp_path / "merged").sha256 == found.sha256


class TestRefusals:
    """One line, with the way out."""

    def test_adapter_for_another_base_is_refused_with_both_digests(self, tiny_model, make_adapter, tmp_path):
        folder, _ = make_adapter()
        other = tmp_path / "other"
        shutil.copytree(tiny_model, other)
        (other / "history.jsonl").write_text("")
        made = manifest.read(tiny_model)
        manifest.write(other, replace(made, files=manifest.describe_files(other)))
        theirs, ours = made.digest, manifest.read(other).digest
        with pytest.raises(AvaError, match=rf"of the model with the digest {theirs}, and .*other has {ours}: give the"):
            Merge.of(other, folder)

    def test_folder_without_an_adapter(self, tiny_model):
        with pytest.raises(AvaError, match=r"holds no adapter: give a folder with adapter_config\.json"):
            read_adapter(tiny_model)

    def test_adapter_in_place_of_a_model(self, tiny_model, make_adapter, tmp_path):
        folder, _ = make_adapter()
        result = merge(folder, folder, tmp_path / "merged")
        assert "is an adapter, not a model: give the model folder" in str(result.exception)
        generated = RUNNER.invoke(app, ["generate", "--model", str(folder), "--prompt", "To be"])
        assert "is an adapter, not a model" in str(generated.exception)

    def test_changed_byte(self, make_adapter):
        folder, _ = make_adapter()
        path = folder / "adapter_model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"adapter_model.safetensors: its bytes are not those in base.json"):
            read_adapter(folder)

    @pytest.mark.parametrize(
        ("setting", "line"),
        [
            ({"peft_type": "IA3"}, "peft_type = IA3: only LORA can be merged"),
            ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]: can't be merged here"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa: the training changed the base's own weights"),
        ],
    )
    def test_settings_that_are_more_than_updates(self, make_adapter, setting, line):
        folder = without_base(make_adapter()[0], setting)
        with pytest.raises(AvaError, match=line):
            read_adapter(folder)

    @pytest.mark.parametrize("change", ["missing", "left over", "shape", "nan"])
    def test_updates_that_do_not_fit(self, tiny_model, make_adapter, change, tmp_path):
        folder = without_base(make_adapter()[0])
        path = folder / "adapter_model.safetensors"
        state = load_file(path)
        name = next(iter(state))
        if change == "left over":
            state["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(1)
        elif change == "missing":
            del state[name]
        else:
            state[name] = state[name][:1].clone() if change == "shape" else state[name] * torch.nan
        save_file(state, path)
        words = {"missing": "is missing", "left over": "no such update", "shape": "has the shape", "nan": "holds nan"}
        with pytest.raises(AvaError, match=rf"{words[change]}.*: give the model that it was trained on"):
            Merge.of(tiny_model, folder).write(tmp_path)


def test_adapter_of_another_tool_is_merged_and_its_base_is_not_vouched_for(tiny_model, make_adapter, tmp_path, caplog):
    folder, expected = make_adapter()
    without_base(folder)
    (tmp_path / "merged").mkdir()
    Merge.of(tiny_model, folder).write(tmp_path / "merged")
    assert "doesn't say on which model it was trained" in caplog.text
    with torch.no_grad():
        found = EnhancedMoEForCausalLM.from_pretrained(tmp_path / "merged").eval()(input_ids=TOKENS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def without_base(folder, changes=()):
    """As PEFT's own `save_pretrained` leaves it."""
    (folder / "base.json").unlink()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(changes)))
    return folder
