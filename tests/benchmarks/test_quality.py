"""The quality benchmark: its settings are valid and comparable, its baseline learns and is scored right, its table."""

import json
import math

import pytest
import torch

from ava_core.config.estimate import estimate
from ava_core.config.layers import resolve
from ava_core.config.yaml_text import to_yaml
from benchmarks import char_gpt, quality, quality_settings
from benchmarks.corpora import shards_by_position
from benchmarks.training_run import Finished

SETTINGS = {
    **{f"tiny {seconds} s": quality_settings.tiny(seconds) for seconds in (8, 61, 300, 900)},
    "moe": quality_settings.moe(),
    "dense": quality_settings.dense(),
    **{f"optimizer {name}": quality_settings.optimizer(name, 0.5, 30) for name in quality_settings.SWEEP},
}


def resolved(settings):
    return resolve(params_text=to_yaml({"model": settings["model"], "train": settings["train"]})).config


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_a_configuration_that_time_ends(name):
    config = resolved(SETTINGS[name])
    assert config.train.max_minutes is not None and config.train.steps == quality_settings.MORE_STEPS


def test_dense_model_has_the_active_parameters_of_moe():
    sparse, dense = (
        estimate(config.model, config.train, 2048).active_parameters
        for config in map(resolved, (quality_settings.moe(), quality_settings.dense()))
    )
    assert dense == pytest.approx(sparse, rel=0.05)


def test_baseline_scores_every_character_once_in_the_context_of_its_window():
    torch.manual_seed(0)
    model = char_gpt.CharGPT(7).eval()
    text = torch.randint(7, (2 * char_gpt.CONTEXT + 5,))
    before = torch.tensor([3])
    stream = torch.cat([before, text])
    expected = 0.0
    for i in range(len(text)):
        start = i // char_gpt.CONTEXT * char_gpt.CONTEXT
        logits = model(stream[None, start : i + 1])[0, -1]
        expected -= float(logits.log_softmax(-1)[text[i]])
    assert char_gpt.score(model, before, text) == pytest.approx(expected, rel=1e-5)


def test_baseline_learns(corpus_text):
    figures = [char_gpt.train(corpus_text[:20_000], steps=steps, seed=0) for steps in (1, 30)]
    assert figures[1]["bits_per_byte"] < figures[0]["bits_per_byte"] - 0.5
    assert figures[0]["bits_per_byte"] == pytest.approx(math.log2(len(set(corpus_text[:20_000]))), abs=1.0)


def test_shards_by_position_hold_the_whole_text_and_are_a_finished_output(tmp_path, corpus_text):
    from ava_core.data.shards import ShardedSplit
    from ava_core.data.tokenizer import load_tokenizer
    from ava_core.runtime import manifest

    folder = shards_by_position(corpus_text, 300, tmp_path / "shards")
    assert manifest.verify(folder, "preprocess")
    tokenizer = load_tokenizer(folder / "tokenizer")
    cut = int(0.9 * len(corpus_text))
    for name, text in (("train", corpus_text[:cut]), ("validation", corpus_text[cut:])):
        split = ShardedSplit.open(folder, name)
        assert tokenizer.decode(split.tokens[:-1]) == text
        assert split.num_bytes == len(text.encode())


def test_sweep_gives_each_optimizer_as_many_trainings_and_uses_the_best_rate(monkeypatch, capsys):
    trained = []

    class Fake:
        def plays(self, settings, seed):
            train = settings["train"]
            trained.append((train["optimizer"], train["learning_rate"], train["max_minutes"]))
            score = {"adamw": 2.0, "muon": 1.9}[train["optimizer"]] + abs(math.log(train["learning_rate"] / 0.02)) / 100
            return Finished(
                bits_per_byte=score,
                seconds=1.0,
                startup_seconds=1.0,
                steps=1,
                tokens_per_second=1.0,
                parameters=1,
            )

    found = quality.optimizers(Fake(), seeds=1)
    names = [name for name, _, minutes in trained if minutes == quality_settings.SWEEP_SECONDS / 60]
    assert names.count("adamw") == names.count("muon")
    shorter = [entry for entry in trained if entry[2] < quality_settings.SWEEP_SECONDS / 60]
    assert {entry[:2] for entry in shorter} == {("muon", 0.02)}
    assert json.dumps(found)
    assert "AdamW's best" in capsys.readouterr().out
