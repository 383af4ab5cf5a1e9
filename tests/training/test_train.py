"""`train()` on a tiny corpus: what it leaves behind."""

import json
import shutil

import pytest

from ava_core.errors import AvaError, IntegrityError
from ava_core.runtime.digests import digest_tree
from ava_core.training.trainer import TrainingEngine
from tests.training.whole_runs import Killed, killed_at


def test_model_folder_is_a_transformers_folder(run):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output, result = run("model")
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert len(tokenizer("To be " * 300, truncation=True)["input_ids"]) == model.config.max_position_embeddings
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


@pytest.mark.slow
def test_checkpoint_with_a_flipped_byte_is_passed_over_for_the_one_before(run, monkeypatch, tmp_path, caplog):
    whole, _ = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingEngine, "update", killed_at(TrainingEngine.update, 6))
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


@pytest.mark.slow
def test_only_so_many_checkpoints_are_kept(run, tmp_path):
    run("model", train={"steps": 8, "checkpoint_every": 1, "keep_checkpoints": 3})
    kept = sorted(path.name for path in (tmp_path / "model.state" / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000007", "step-00000008"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_weight(run):
    (plain, _), (recomputed, _) = (
        run(name, train={"gradient_checkpointing": value}) for name, value in (("plain", False), ("recomputed", True))
    )
    name = "model.safetensors"
    assert (plain / name).read_bytes() == (recomputed / name).read_bytes()


def test_loss_that_is_no_number_stops_with_the_step_and_the_way_out(run):
    with pytest.raises(AvaError, match=r"step \d+: .+ is (nan|inf).* \(in model\..+\): lower train.learning_rate"):
        run(
            "model",
            train={
                "learning_rate": 1000,
                "adam_learning_rate": 1000,
                "embedding_learning_rate_ratio": 1e6,
                "gradient_clip": 0,
            },
        )


def test_pipeline_of_the_model_folder_stays_within_the_context(tiny_model):
    from transformers import pipeline

    write = pipeline("text-generation", model=str(tiny_model), device="cpu")
    long = "To be, or not to be. " * 40
    with pytest.raises(ValueError, match=r"prompt of \d{3} tokens: the model's context .* is 128: shorten it"):
        write(long, max_new_tokens=4)
    assert write(long, max_new_tokens=4, truncation=True, return_full_text=False)[0]["generated_text"] is not None
    ids = write("To be", max_new_tokens=500, eos_token_id=[], return_tensors=True)[0]["generated_token_ids"]
    assert len(ids) == 128


def test_damaged_tokenizer_is_named_before_the_training(run, tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingEngine, "__init__", killed_at(TrainingEngine.__init__, 1))
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    (shards / "tokenizer" / "tokenizer_config.json").write_text('["no", "settings"')
    with pytest.raises(IntegrityError, match=r"tokenizer_config\.json: can't be read as a tokenizer \(.*\): restore"):
        run("model", shards=shards)


def test_missing_tokenizer_is_named(run, tiny_shards, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    (shards / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(AvaError, match=r"tokenizer\.json: no such file: run `ava preprocess` again"):
        run("model", shards=shards)
