import json
import os
import time

import pytest

from ava_core.config.run import RunConfig
from ava_core.runtime import manifest
from ava_core.runtime.work import WorkStore, timings_path
from ava_core.tracking.labels import labels_path, write_labels


def finish(folder, step="train", figures=None, seconds=12.3, inputs=None):
    """An output as a step leaves it."""
    folder.mkdir(parents=True)
    (folder / "data.bin").write_bytes(bytes(1_500_000))
    (folder / "metrics.json").write_text(json.dumps(figures or {"steps": 7, "validation_bits_per_byte": 1.875}))
    identity = {"step": step, "key": "k", "version": "0", "code": "", "config": "", "choices": {}}
    identity["inputs"] = inputs or {}
    manifest.write(folder, manifest.Manifest(**identity, threads=1, ranks=1, files=manifest.describe_files(folder)))
    timings_path(folder).write_text(json.dumps({"wall_seconds": seconds}))
    return folder


def test_outputs_are_listed_with_size_time_and_figures(ava, tmp_path):
    finish(tmp_path / "outputs" / "model")
    finish(tmp_path / "outputs" / "quantized" / "int8", "quantize", {"compression_ratio": 0.27})
    result = ava("show")
    assert result.code == 0
    assert [" ".join(line.split()) for line in result.out.splitlines()] == [
        "step output size took figures",
        "train outputs/model 1.5 MB 12 s validation_bits_per_byte 1.875, steps 7",
        "quantize outputs/quantized/int8 1.5 MB 12 s compression_ratio 0.27",
    ]


def test_model_that_another_began_from_is_named_where_it_is_among_them(ava, tmp_path):
    parent = finish(tmp_path / "base", figures={"steps": 5})
    digest = manifest.read(parent).digest
    finish(tmp_path / "next", inputs={"init": digest})
    finish(tmp_path / "other", inputs={"init": "0" * 64})
    finish(tmp_path / "searched", inputs={"index": digest})
    lines = [" ".join(line.split()) for line in ava("show").out.splitlines()]
    assert [line.partition(" s ")[2] for line in lines[1:]] == [
        "steps 5",
        "validation_bits_per_byte 1.875, steps 7, began from base",
        "validation_bits_per_byte 1.875, steps 7, began from 000000000000",
        "validation_bits_per_byte 1.875, steps 7, looked up in base",
    ]


def test_outputs_of_named_runs_say_so(ava, tmp_path):
    write_labels(finish(tmp_path / "a"), RunConfig(name="first try", tags={"team": "prose"}, notes="Why\nnot"))
    labels_path(finish(tmp_path / "b")).write_text('{"tags": 5}')
    lines = [" ".join(line.split()) for line in ava("show").out.splitlines()]
    assert lines[0] == "step output size took figures run"
    assert lines[1].endswith("steps 7 first try [team=prose] Why") and lines[2].endswith("steps 7")
    write_labels(tmp_path / "a", RunConfig())
    assert not labels_path(tmp_path / "a").exists()


def test_broken_outputs_are_named_among_the_others_and_the_end_is_1(ava, tmp_path):
    finish(tmp_path / "a")
    (finish(tmp_path / "b") / "manifest.json").write_text("{")
    timings_path(finish(tmp_path / "c", figures=["no", "figures"])).unlink()
    finish(tmp_path / "d", step="a step of another version")
    (finish(tmp_path / "e") / "data.bin").write_bytes(bytes(1_499_999) + b"x")
    result = ava("show")
    rows = [line.split() for line in result.out.splitlines()[1:]]
    assert [(row[0] == "damaged", row[1]) for row in rows if row[1] != "step"] == [
        (False, "a"),
        (True, "b"),
        (False, "c"),
        (True, "e"),
    ]
    assert "e/data.bin: its bytes are not those in the manifest" in result.out
    assert result.code == 1
    assert result.err.startswith("ava: b/manifest.json: can't be read")
    assert result.err.endswith("(and 1 more are damaged)\n")


def test_an_empty_folder_and_a_missing_one(ava, tmp_path):
    assert ava("show").out == f"no finished outputs below {tmp_path}\n"
    assert ava("show", "gone").err == "ava: gone: no such folder\n"
    assert ava("show", "--work").out == "no work in .ava/work\n"


@pytest.fixture
def work(tmp_path):
    """One finished and one unfinished run, the finished one unused for two days."""
    store = WorkStore(tmp_path / ".ava" / "work")
    done, begun = store.entry("preprocess", "a" * 64), store.entry("train", "b" * 64)
    for entry in (done, begun):
        with entry.locked():
            entry.begin()
    done.staging.rename(done.output)
    (done.output / "x").write_bytes(bytes(2_000_000))
    used = time.time() - 2 * 86_400
    os.utime(done.folder / "lock", (used, used))
    return store


def test_unfinished_runs_are_mentioned_and_listed(ava, work):
    assert "unfinished in .ava/work: train (see `ava show --work`)" in ava("show").out
    lines = [line.split()[:3] for line in ava("show", "--work").out.splitlines()]
    assert lines == [
        ["step", "key", "state"],
        ["train", "b" * 12, "unfinished"],
        ["preprocess", "a" * 12, "finished"],
    ]


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (("--max-age-days", "1"), {"train"}),
        (("--max-age-days", "3"), {"train", "preprocess"}),
        (("--max-gigabytes", "0.001"), {"train"}),
        (("--max-age-days", "0"), set()),
    ],
)
def test_pruning_keeps_what_the_bounds_let(ava, work, flags, left):
    result = ava("show", "--prune", *flags)
    assert result.code == 0
    assert result.out.startswith(f"removed {2 - len(left)} of the entries in .ava/work")
    assert {step for step, *_ in work.entries()} == left
