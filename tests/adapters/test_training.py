"""`train.adapter`: what is trained, what is left of it in the folder, and what stays as it was."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ava_core.adapters.folder import read_adapter
from ava_core.adapters.merging import Merge
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_tree
from ava_core.training.engine.engine import TrainingEngine
from tests.conftest import _finished as finished
from tests.training.conftest import quick_peak, run  # noqa: F401  fixtures
from tests.training.test_resume import assert_survives
from tests.training.whole_runs import rows, weights

MODEL = {"max_experts_per_token": 4}
"""As the shared tiny model has it."""
LORA = {"optimizer": "adamw", "learning_rate": 0.01, "steps": 12, "adapter": {"kind": "lora", "rank": 2}}


def adapted(run, tiny_model, name="adapted", **train):  # noqa: F811
    return run(name, init=tiny_model, model=MODEL, train={**LORA, **train})[0]


@pytest.mark.slow
def test_loss_falls_and_only_what_was_to_be_updated_is_another(run, tiny_model):  # noqa: F811
    before = digest_tree(tiny_model)
    output = adapted(run, tiny_model, adapter={"kind": "lora", "rank": 2, "targets": ["experts", "router"]}, steps=30)
    losses = [row["train_loss"] for row in rows(output)]
    assert sum(losses[-5:]) < sum(losses[:5])
    parent, found = weights(tiny_model), weights(output)
    changed = {name for name, value in found.items() if not value.equal(parent[name])}
    names = ("gate_up_proj", "down_proj")
    assert changed == {f"model.layers.{i}.moe.experts.{name}" for i in (0, 1) for name in names} | {
        f"model.layers.{i}.moe.gate.weight" for i in (0, 1)
    }
    assert digest_tree(tiny_model) == before


def test_folder_holds_the_merged_model_and_the_adapter_beside_the_digest_of_its_base(run, tiny_model):  # noqa: F811
    output, result = run("adapted", init=tiny_model, model=MODEL, train=LORA)
    digest = manifest.read(tiny_model).digest
    record = json.loads((output / "training.json").read_text())
    assert json.loads((output / "adapter" / "base.json").read_text())["base"] == digest == record["parent"]["model"]
    assert (record["adapter"]["kind"], record["adapter"]["rank"]) == ("lora", 2)
    assert sorted(path.name for path in (output / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]
    assert weights(output).keys() == weights(tiny_model).keys()
    assert result.metrics["parameters"] == json.loads((tiny_model / "training.json").read_text())["parameters"]


@pytest.mark.parametrize(
    "adapter",
    [
        {"kind": "lora", "rank": 2, "targets": ["attention", "experts", "router"]},
        pytest.param({"kind": "dora", "rank": 2, "targets": ["attention"], "dropout": 0.1}, marks=pytest.mark.slow),
    ],
    ids=["lora", "dora"],
)
def test_peft_reads_the_adapter_and_computes_what_the_merged_model_does(run, tiny_model, adapter):  # noqa: F811
    from peft import PeftModel

    output = adapted(run, tiny_model, adapter=adapter)
    base, merged = (EnhancedMoEForCausalLM.from_pretrained(path).eval() for path in (tiny_model, output))
    tokens = torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        expected, before = merged(input_ids=tokens).logits, base(input_ids=tokens).logits
        found = PeftModel.from_pretrained(base, output / "adapter").eval()(input_ids=tokens).logits
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_adapter_learns_from_a_teacher_and_what_it_does_not_train_stays(run, tiny_model):  # noqa: F811
    teacher, _ = run("teacher", init=tiny_model, model=MODEL, train={"steps": 30, "learning_rate": 0.02})
    finished(teacher, "train", {})
    train = {**LORA, "steps": 30, "teacher": {"top_k": 16, "weight": 1.0}}
    output, _ = run("taught", init=tiny_model, teacher=teacher, model=MODEL, train=train)
    divergence = [row["teacher_kl"] for row in rows(output) if "teacher_kl" in row]
    assert sum(divergence[-5:]) < sum(divergence[:5])
    record = json.loads((output / "training.json").read_text())
    assert record["parent"]["model"] == manifest.read(tiny_model).digest
    assert record["teacher"]["model"] == manifest.read(teacher).digest
    assert weights(output)["model.norm.weight"].equal(weights(tiny_model)["model.norm.weight"])
    assert read_adapter(output).base == manifest.read(tiny_model).digest


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_killed_training_of_an_adapter_ends_with_the_same_bytes(run, monkeypatch, tiny_model, precision):  # noqa: F811
    train = {**LORA, "steps": 6, "precision": precision, "ema": {"decay": 0.9}}
    whole = assert_survives(
        run, monkeypatch, TrainingEngine, "update", 5, {"init": tiny_model, "model": MODEL, "train": train}
    )
    state = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert any(value.count_nonzero() for name, value in state.items() if "lora_B" in name)


def test_checkpoints_hold_the_updates_alone(run, tmp_path, tiny_model):  # noqa: F811
    adapted(run, tiny_model, steps=4, keep_checkpoint_every=4)
    folder = tmp_path / "adapted.kept" / "step-00000004"
    entries = sum(value.numel() for value in weights(tiny_model).values())
    assert sum(path.stat().st_size for path in folder.rglob("*.pt")) < 4 * entries
    frozen = json.loads((folder / "checkpoint.json").read_text())["frozen"]
    assert not [name for name in frozen if "lora_" in name]


class TestRefusals:
    """What an adapter can't be trained with is said before any work."""

    def test_change_that_an_adapter_cannot_carry(self, run, tiny_model):  # noqa: F811
        changes = {"train": LORA, "model": {"max_experts_per_token": 3}}
        with pytest.raises(
            ConfigError, match=r"model.max_experts_per_token = 3: the model of train.init has 4, .*updates"
        ):
            run("adapted", init=tiny_model, **changes)

    def test_targets_that_the_model_lacks(self, run, tiny_model):  # noqa: F811
        adapter = {"kind": "lora", "targets": ["shared"]}
        with pytest.raises(ConfigError, match=r"train.adapter.targets = \['shared'\]: the model has no shared experts"):
            adapted(run, tiny_model, adapter=adapter)


def test_base_and_adapter_make_the_model_again_to_the_byte(run, tiny_model, tmp_path):  # noqa: F811
    output = adapted(run, tiny_model)
    adapter = read_adapter(output)
    assert adapter.base == manifest.read(tiny_model).digest
    assert adapter.settings.r == 2 and adapter.digest == read_adapter(output / "adapter").digest
    (tmp_path / "merged").mkdir()
    Merge.of(tiny_model, output).write(tmp_path / "merged")
    name = "model.safetensors"
    assert (tmp_path / "merged" / name).read_bytes() == (output / name).read_bytes()
