"""The benchmark of alignment: which commands it runs, and what its lines say."""

import json

import pytest

from benchmarks import alignment_methods, rollouts
from benchmarks.alignment_methods import Bench, Target, show, targets, train_all

SFT = {"validation_loss_gain": 0.9, "ended_answers": 0.9}
GRPO = {"start_sample_reward": 0.5, "sample_reward": 0.7, "author_reward": 0.9, "kl_to_start": 12.5}


@pytest.fixture
def commands(monkeypatch):
    """What is run, by the output's name; nothing is."""
    found = {}
    monkeypatch.setattr(alignment_methods, "run", lambda name, command: found.setdefault(name, command))
    return found


def test_every_method_begins_from_the_fine_tuned_model_and_trains_its_minutes(commands, tmp_path):
    bench = Bench(tmp_path, tmp_path / "shards", ["threads=1"])
    folders = train_all(bench, tmp_path / "tuned", 3.0)
    assert set(folders) == {"reward", "dpo", "grpo", "replayed", "not-replayed"}
    for name in folders:
        words = commands[name]
        assert words[words.index("--model") + 1] == str(tmp_path / "tuned") and words[-1] == "threads=1"
    for section, minutes in (("reward", 3.0), ("dpo", 5.0), ("grpo", 10.0)):
        assert f"{section}.max_minutes={minutes}" in commands[section]
    assert (
        str(tmp_path / "preference-shards") in commands["dpo"] and str(tmp_path / "prompts-shards") in commands["grpo"]
    )
    assert "grpo.rollout=onnx" in commands["grpo"]
    assert "grpo.replay=true" in commands["replayed"] and "grpo.replay=false" in commands["not-replayed"]


def test_lines_hold_what_was_measured_against_the_target(tmp_path):
    figures = {"sft": SFT, "reward": {"validation_accuracy": 0.6}, "dpo": {"validation_accuracy": 0.8}, "grpo": GRPO}
    folders = {name: tmp_path / name for name in (*figures, "replayed", "not-replayed")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(figures.get(name, {})))
        kl = 0.001 if name == "replayed" else 0.006
        (folder / "history.jsonl").write_text(f"{json.dumps({'step': 1, 'rollout_kl': kl})}\n" * 3)
    found = targets(folders, {"sft": 0.1, "dpo": 0.06, "grpo": 0.2}, {"onnx": 45.0, "TRL generate": 10.0})
    rows = {(target.method, target.figure.split()[0]): target.row() for target in found}
    assert rows["sft", "nats"][2:] == ["0.900", ">= 0.15", "yes"]
    assert rows["sft", "share"][2:] == ["0.900", ">= 0.95", "no"]
    assert rows["sft", "bits"][2:] == ["0.100", "", ""]
    assert rows["dpo", "bits"][2:] == ["0.060", "<= 0.05", "no"]
    assert rows["grpo", "share"][2:] == ["0.500", ">= 0.4", "yes"]
    assert rows["grpo", "rollout_kl"][2:] == ["6.000", ">= 5", "yes"]
    assert rows["grpo", "samples"][2:] == ["4.500", ">= 4", "yes"]
    assert show([Target("dpo", "x", 1.0, 2.0)]).splitlines()[-1].split() == ["dpo", "x", "1.000", ">=", "2", "no"]


def test_failing_step_ends_the_benchmark_by_name():
    with pytest.raises(SystemExit, match=r"^dpo: ended with 3"):
        alignment_methods.run("dpo", ["sh", "-c", "exit 3"])


def test_first_round_of_rollouts_does_not_count():
    played = []
    found = rollouts.measure({"a": lambda seed: played.append(seed) or (1000 if seed == 0 else 80)}, 8, 3)
    assert played == [0, 1, 2, 3] and found["a"]["answer_tokens"] == 10
    assert found["a"]["tokens_per_second"] == pytest.approx(10 * found["a"]["samples_per_second"])
