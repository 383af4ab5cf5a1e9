"""The step on the tiny model: figures, files, repeatability, and inputs that don't belong together."""

import dataclasses
import json
import math
import shutil
from html.parser import HTMLParser

import pytest

from ava_core.data.shards import ShardedSplit
from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.evaluation import evaluate as step
from ava_core.evaluation.samples import STRATEGIES
from ava_core.runtime import manifest
from ava_core.steps.table import STEPS


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(run):
    return json.loads((run.output / "evaluation.json").read_text())


def test_all_promised_figures_are_there_and_finite(evaluated):
    assert set(STEPS["evaluate"].metrics) <= set(evaluated.metrics)
    assert all(math.isfinite(value) for value in evaluated.metrics.values())


def test_figures_follow_from_each_other(evaluated, tiny_shards):
    metrics, split = evaluated.metrics, ShardedSplit.open(tiny_shards, "test")
    assert metrics["test_perplexity"] == pytest.approx(math.exp(metrics["test_loss"]))
    nats = metrics["test_loss"] * split.num_tokens
    assert metrics["test_bits_per_byte"] == pytest.approx(nats / math.log(2) / split.num_bytes)
    assert 0 < metrics["test_accuracy"] < metrics["test_top5_accuracy"] < 1
    assert metrics["test_loss"] < 0.9 * math.log(384)  # the model has learnt something


def test_evaluation_json_keeps_its_promises(evaluated):
    found = contents(evaluated)
    assert found["figures"]["float"] == evaluated.metrics
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    assert {"load", "entropy", "ffn_experts_per_token", "dead_experts"} <= set(found["layers"][0])
    assert [(item["model"], item["strategy"]) for item in found["samples"][::2]] == [
        ("float", name) for name in STRATEGIES
    ]
    assert all(item["text"].startswith(item["prompt"]) for item in found["samples"])
    assert found["protocol"]["sequence_length"] == 64


def test_second_run_gives_the_same_bytes(evaluated, run_evaluation, tmp_path):
    assert files(run_evaluation(tmp_path).output) == files(evaluated.output)


def test_killed_run_goes_on_from_what_it_kept_to_the_same_bytes(evaluated, run_evaluation, tmp_path, monkeypatch):
    def die(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(step, "render", die)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(tmp_path)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "output")
    monkeypatch.setattr("ava_core.evaluation.samples.generate", die)  # kept, so not drawn again
    assert files(run_evaluation(tmp_path).output) == files(evaluated.output)


def test_another_seed_changes_the_samples_and_no_score(evaluated, run_evaluation, tmp_path):
    other = run_evaluation(tmp_path, seed=6)
    assert contents(other)["samples"] != contents(evaluated)["samples"]
    assert other.metrics["test_loss"] == evaluated.metrics["test_loss"]


class Page(HTMLParser):
    """Tags, what they refer to, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.text, self.open = set(), [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in ("meta", "path", "use", "rect", "br"):
            self.open.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag):
        if tag not in ("meta", "path", "use", "rect", "br"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def test_report_is_one_file_that_needs_no_other(evaluated):
    text = (evaluated.output / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert "url(http" not in text
    assert "@import" not in text


def test_report_escapes_prompts_and_shows_them_as_they_were(evaluated):
    text = (evaluated.output / "report.html").read_text()
    assert "<script" not in text
    assert "<script>alert('x')</script> & \"so\" on" in Page(text).text


def test_report_shows_the_figures(evaluated):
    text = Page((evaluated.output / "report.html").read_text()).text
    assert f"{evaluated.metrics['test_bits_per_byte']:.4f}" in text
    assert f"{evaluated.metrics['test_perplexity']:.3f}" in text
    for item in contents(evaluated)["provenance"].values():
        assert item["digest"] in text


def test_float_and_int8_are_scored_side_by_side(evaluated, run_evaluation, tiny_int8, tmp_path):
    both = run_evaluation(tmp_path, quantized=[tiny_int8])
    for name in STEPS["evaluate"].metrics:
        assert both.metrics[name] == evaluated.metrics[name]
        assert f"int8_{name}" in both.metrics
    assert both.metrics["int8_test_bits_per_byte"] == pytest.approx(both.metrics["test_bits_per_byte"], rel=5e-3)
    assert both.metrics["int8_test_loss"] != both.metrics["test_loss"]
    assert {item["model"] for item in contents(both)["samples"]} == {"float", "int8"}
    assert "texts are those of the float model" in (both.output / "report.html").read_text()


def test_two_folders_of_one_scheme_are_refused(run_evaluation, tiny_int8, tmp_path):
    with pytest.raises(ConfigError, match="give one folder of each scheme"):
        run_evaluation(tmp_path, quantized=[tiny_int8, tiny_int8])


def test_model_quantised_from_another_one_is_refused(run_evaluation, tiny_int8, tmp_path):
    other = shutil.copytree(tiny_int8, tmp_path / "int8")
    manifest.write(other, dataclasses.replace(manifest.read(other), inputs={"model": "0" * 64}))
    with pytest.raises(ConfigError, match="was made from another model"):
        run_evaluation(tmp_path, quantized=[other])


def test_folder_that_is_no_quantised_model_is_refused(run_evaluation, tiny_model, tmp_path):
    with pytest.raises(AvaError, match=r"quantization.json: no such file: give the output folder of `ava quantize`"):
        run_evaluation(tmp_path, quantized=[tiny_model])


def test_shards_that_count_their_bytes_wrong_are_refused(run_evaluation, tiny_shards, tmp_path):
    other = shutil.copytree(tiny_shards, tmp_path / "shards")
    info = json.loads((other / "splits.json").read_text())
    info["splits"]["test"]["num_bytes"] += 1
    (other / "splits.json").write_text(json.dumps(info))
    with pytest.raises(IntegrityError, match="bits per byte would be wrong"):
        run_evaluation(tmp_path, shards=other)


def test_shards_that_the_model_was_not_trained_on_are_pointed_out(run_evaluation, tiny_shards, tmp_path, caplog):
    other = shutil.copytree(tiny_shards, tmp_path / "shards")
    (other / "cleaning.json").write_text('{"another": "cleaning"}')
    record = manifest.read(other)
    manifest.write(other, dataclasses.replace(record, files=manifest.describe_files(other)))
    run_evaluation(tmp_path, shards=other)
    assert f"{other} are not the shards" in caplog.text
    caplog.clear()
    run_evaluation(tmp_path / "own")
    assert "are not the shards" not in caplog.text


def test_prompt_that_is_too_long_is_refused_before_anything_is_scored(run_evaluation, tmp_path):
    with pytest.raises(AvaError, match="more than the model's context"):
        run_evaluation(tmp_path, settings={"prompts": ["words " * 200]})
    assert not list((tmp_path / "state").iterdir())


def test_missing_training_record_is_named(run_evaluation, tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "model")
    (other / "training.json").unlink()
    with pytest.raises(AvaError, match=r"training\.json: no such file: give a model folder, as `ava train` or"):
        run_evaluation(tmp_path, model=other)
