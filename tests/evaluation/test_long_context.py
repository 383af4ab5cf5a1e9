"""Losses in windows longer than the training's: places, buckets, sums, what is refused."""

import json
import math

import numpy as np
import pytest
import torch

from ava_core.data.batches import document_ids, scoring_windows
from ava_core.data.shards import ShardedSplit
from ava_core.errors import ConfigError
from ava_core.evaluation.long_context import bucket_of, bucket_start, places
from ava_core.generation.loading import load_model

LENGTH = 128


@pytest.fixture(scope="module")
def measured(run_evaluation, tmp_path_factory):
    return run_evaluation(tmp_path_factory.mktemp("long"), {"context": LENGTH})


def contents(run):
    return json.loads((run.output / "evaluation.json").read_text())


def literal_places(tokens, length):
    """From the windows themselves, as the model gets them."""
    found = []
    for batch in scoring_windows(tokens, length, 0, batch_size=3):
        ids = document_ids(batch.inputs, 0)
        for row, mask in zip(ids, batch.mask, strict=True):
            found += [int((row[:index] == row[index]).sum()) for index in np.flatnonzero(mask)]
    return found


def test_places_are_those_of_the_windows(tiny_shards):
    stream = ShardedSplit.open(tiny_shards, "test").tokens[:700]
    stream = np.concatenate([stream[:90], [0], stream[90:200], [0, 0], stream[200:]])
    for length in (1, 7, 64, 1000):
        assert places(stream, length, 0).tolist() == literal_places(stream, length)


def test_buckets_double():
    found = bucket_of(np.asarray([0, 31, 32, 63, 64, 127, 128, 4095, 4096]))
    assert found.tolist() == [0, 0, 1, 1, 2, 2, 3, 7, 8]
    assert [bucket_start(bucket) for bucket in range(5)] == [0, 32, 64, 128, 256]


def test_losses_are_those_of_the_models_passes(measured, tiny_model, tiny_shards):
    model, split = load_model(tiny_model)[0], ShardedSplit.open(tiny_shards, "test")
    sums, counts = np.zeros(3), np.zeros(3, int)
    for batch in scoring_windows(split.tokens, LENGTH, split.boundary_token_id, batch_size=4):
        inputs, ids = torch.from_numpy(batch.inputs), document_ids(batch.inputs, split.boundary_token_id)
        with torch.no_grad():
            logits = model(inputs, document_ids=torch.from_numpy(ids), use_cache=False).logits
        nll = -logits.log_softmax(-1).gather(-1, torch.from_numpy(batch.targets)[..., None])[..., 0].numpy()
        for row in range(len(inputs)):
            for index in np.flatnonzero(batch.mask[row]):
                place = int((ids[row, :index] == ids[row, index]).sum())
                bucket = 0 if place < 32 else 1 if place < 64 else 2
                sums[bucket] += nll[row, index]
                counts[bucket] += 1
    found = contents(measured)["context"]
    assert [bucket["tokens"] for bucket in found["buckets"]] == counts.tolist()
    assert [bucket["first"] for bucket in found["buckets"]] == [0, 32, 64]
    assert found["loss"]["float"] == pytest.approx((sums / counts).tolist(), rel=1e-4)
    assert sum(bucket["bytes"] for bucket in found["buckets"]) == split.num_bytes
    assert measured.metrics["context_loss"] == pytest.approx(sums.sum() / counts.sum(), rel=1e-4)
    assert measured.metrics["context_loss_from_64"] == found["loss"]["float"][2]
    nats = measured.metrics["context_loss"] * split.num_tokens
    assert measured.metrics["context_bits_per_byte"] == pytest.approx(nats / math.log(2) / split.num_bytes)


def test_all_other_figures_are_as_without(measured, evaluated):
    others = {name: value for name, value in measured.metrics.items() if not name.startswith("context_")}
    assert others == evaluated.metrics
    assert (
        "context" not in contents(evaluated) and "Longer context" not in (evaluated.output / "report.html").read_text()
    )


def test_report_and_summary_show_the_table(measured):
    page, summary = ((measured.output / name).read_text() for name in ("report.html", "summary.md"))
    loss = f"{measured.metrics['context_loss_from_64']:.4f}"
    assert "64 to 127 *" in page and loss in page
    assert f"| 64 to 127 * | {contents(measured)['context']['buckets'][2]['tokens']:,} | {loss} |" in summary
    assert "| 32 to 63 |" in summary


def test_killed_run_goes_on_to_the_same_figures(measured, run_evaluation, tmp_path, monkeypatch):
    def die(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ava_core.evaluation.evaluate.render", die)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(tmp_path, {"context": LENGTH})
    monkeypatch.undo()
    (tmp_path / "output").rename(tmp_path / "before")
    assert json.loads((tmp_path / "state" / "float.context.json").read_text())["tokens"] > 0
    assert run_evaluation(tmp_path, {"context": LENGTH}).metrics == measured.metrics


def test_context_beyond_the_models_is_refused(run_evaluation, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate.context = 4096: must be <= \d+, the model's context"):
        run_evaluation(tmp_path, {"context": 4096})
