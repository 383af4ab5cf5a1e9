"""`ava train` on a tiny corpus: what it leaves behind, and that a killed run ends with the same bytes."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from ava_core.config import resolve
from ava_core.runtime.digests import digest_tree
from ava_core.runtime.progress import Progress
from ava_core.training import checkpoints as checkpoints_module
from ava_core.training.train import train


class Killed(BaseException):
    """Stands for SIGKILL inside a test process: nothing in the library catches it."""


@pytest.fixture
def run(tmp_path, tiny_shards, make_params):
    def call(name, state=None, **changes):
        config = resolve(params=make_params(**changes)).config
        output, state = tmp_path / name, tmp_path / (state or f"{name}.state")
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        state.mkdir(exist_ok=True)
        result = train(
            model_config=config.model,
            train_config=config.train,
            seed=config.seed,
            shards=tiny_shards,
            output=output,
            state=state,
            threads=1,
            progress=Progress(quiet=True),
        )
        return output, result

    return call


def test_model_folder_is_a_transformers_folder(run):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output, result = run("model")
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    ids = tokenizer("To be", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()
    assert result.metrics["parameters"] == model.num_parameters()
    record = json.loads((output / "training.json").read_text())
    assert record["sequence_length"] == 64
    assert record["corpus"]["train_tokens"] > record["corpus"]["test_tokens"] > 0
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert [row["step"] for row in rows if "validation_loss" in row] == [3, 6]
    assert all(0 <= row["dead_experts"] <= 14 and row["expert_load_cv"] >= 0 for row in rows)
    assert all(0 <= row["collapsed_layers"] <= model.config.num_layers for row in rows)
    assert not list(output.rglob("*.pt")) and not list(output.rglob("*.bin"))


def test_training_lowers_the_loss(run):
    _, result = run("model", train={"steps": 60, "evaluate_every": 60, "checkpoint_every": 60})
    _, untrained = run(
        "untrained", train={"steps": 2, "evaluate_every": 2, "learning_rate": 1e-9, "adam_learning_rate": 1e-9}
    )
    assert result.metrics["validation_loss"] < untrained.metrics["validation_loss"] - 0.5


@pytest.mark.parametrize(("optimizer", "router"), [("muon", "top_k"), ("adamw", "expert_bias")])
def test_interrupted_run_ends_with_the_bytes_of_an_undisturbed_one(run, monkeypatch, optimizer, router):
    changes = {"model": {"dropout": 0.1, "router_jitter": 0.1, "router": router}, "train": {"optimizer": optimizer}}
    whole, _ = run("whole", **changes)
    save = checkpoints_module.CheckpointFolder.save

    def die_after_step_4(self, engine, step):
        save(self, engine, step)
        if step == 4:
            raise Killed

    monkeypatch.setattr(checkpoints_module.CheckpointFolder, "save", die_after_step_4)
    with pytest.raises(Killed):
        run("resumed", **changes)
    monkeypatch.undo()
    resumed, _ = run("resumed", **changes)
    assert digest_tree(resumed) == digest_tree(whole)
    biases = {name: value for name, value in load_file(whole / "model.safetensors").items() if "expert_bias" in name}
    assert bool(biases) == (router == "expert_bias") and all(value.any() for value in biases.values())


def test_checkpoint_with_a_flipped_byte_is_passed_over_for_the_one_before(run, monkeypatch, tmp_path, caplog):
    whole, _ = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module.CheckpointFolder, "save", _save_and_die_at(4))
        with pytest.raises(Killed):
            run("resumed")
    newest = sorted((tmp_path / "resumed.state" / "checkpoints").glob("step-*"))[-1]
    file = next((newest / "engine").glob("*.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    resumed, _ = run("resumed")
    assert newest.name == "step-00000004"
    assert any(str(file) in message for message in caplog.messages)
    assert digest_tree(resumed) == digest_tree(whole)


def _save_and_die_at(last):
    save = checkpoints_module.CheckpointFolder.save

    def save_and_die(self, engine, step):
        save(self, engine, step)
        if step == last:
            raise Killed

    return save_and_die


def test_only_so_many_checkpoints_are_kept(run, tmp_path):
    run("model", train={"steps": 8, "checkpoint_every": 1, "keep_checkpoints": 3})
    kept = sorted(path.name for path in (tmp_path / "model.state" / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000007", "step-00000008"]


def test_accumulated_micro_batches_give_the_same_step(run):
    (_, whole), (_, parts) = (
        run(
            name,
            train={"micro_batch_size": size, "precision": "fp32", "optimizer": "adamw"},
            model={"balance_loss_weight": 0.0},  # a product of means: not the same over parts of a batch
        )
        for name, size in (("whole", 4), ("parts", 1))
    )
    assert whole.metrics["validation_loss"] == pytest.approx(parts.metrics["validation_loss"], abs=2e-3)


def test_gradient_checkpointing_changes_no_weight(run):
    (plain, _), (recomputed, _) = (
        run(name, train={"gradient_checkpointing": value}) for name, value in (("plain", False), ("recomputed", True))
    )
    name = "model.safetensors"
    assert (plain / name).read_bytes() == (recomputed / name).read_bytes()


def test_loss_that_is_no_number_stops_with_the_step_and_the_way_out(run):
    from ava_core.errors import AvaError

    with pytest.raises(AvaError, match=r"step \d+: the training loss is (nan|inf): .+: lower train.learning_rate"):
        run("model", train={"learning_rate": 1e30, "adam_learning_rate": 1e30, "gradient_clip": 0})


def test_missing_tokenizer_is_named(run, tiny_shards, tmp_path, make_params):
    from ava_core.errors import AvaError

    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    (shards / "tokenizer" / "tokenizer.json").unlink()
    config = resolve(params=make_params()).config
    with pytest.raises(AvaError, match=r"tokenizer\.json: no such file"):
        train(
            model_config=config.model,
            train_config=config.train,
            seed=1,
            shards=shards,
            output=tmp_path,
            state=tmp_path,
            threads=1,
            progress=Progress(quiet=True),
        )
