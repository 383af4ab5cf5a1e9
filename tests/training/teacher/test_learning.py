"""Trainings with a teacher: what it gives, that they can be killed and repeated, and what is refused."""

import json
import re
import shutil

import pytest

from ava_core.runtime import manifest
from ava_core.training.teacher.computing import Reading
from ava_core.training.trainer import TrainingEngine
from tests.cli.conftest import ava  # noqa: F401  a fixture
from tests.conftest import _finished as finished
from tests.training.test_bad_training_input import assert_refused, ava_train, no_steps  # noqa: F401  fixtures
from tests.training.test_resume import assert_survives
from tests.training.whole_runs import Killed, killed_at, rows

STUDENT = {"hidden_size": 16, "num_ffn_experts": 2, "expert_intermediate_size": 16}


def learning(**train):
    teacher = {"top_k": 16, **train.pop("teacher", {})}
    return {
        "model": STUDENT,
        "train": {"steps": 30, "checkpoint_every": 10, "evaluate_every": 15, **train, "teacher": teacher},
    }


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def parts(tmp_path):
    return sorted((tmp_path / "work" / "teacher").glob("*/output/part-*.safetensors"))


@pytest.mark.slow
def test_teacher_brings_its_student_nearer_to_itself_and_to_the_text(run, tiny_model):
    taught, _ = run("taught", teacher=tiny_model, **learning(teacher={"weight": 0.7}))
    alone, _ = run("alone", **learning(teacher={}))
    history = rows(taught)
    divergence = [row["teacher_kl"] for row in history if "teacher_kl" in row]
    assert min(divergence) >= 0 and sum(divergence[-5:]) < 0.8 * sum(divergence[:5])
    assert "teacher_kl" not in rows(alone)[0]
    # The same weights to begin with: before the first update the cross-entropy is the same.
    assert history[0]["train_loss"] == pytest.approx(rows(alone)[0]["train_loss"], rel=1e-3)
    assert history[-1]["validation_loss"] < rows(alone)[-1]["validation_loss"]
    record = json.loads((taught / "training.json").read_text())["teacher"]
    assert record == {"model": manifest.read(tiny_model).digest, "weight": 0.7, "temperature": 1.0, "top_k": 16}


@pytest.mark.slow
def test_killed_student_ends_with_the_same_bytes(run, monkeypatch, tiny_model):
    changes = learning(steps=6, checkpoint_every=2, curriculum={"sequence_lengths": [32]})
    assert_survives(run, monkeypatch, TrainingEngine, "update", 5, {"teacher": tiny_model, **changes})


@pytest.mark.slow
def test_killed_computation_goes_on_after_the_parts_that_are_there(run, monkeypatch, tmp_path, tiny_model):
    monkeypatch.setattr("ava_core.training.teacher.predictions.Predictions.__init__.__defaults__", (3_000,))
    changes = learning(steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(Reading, "write", killed_at(Reading.write, 3))
        with pytest.raises(Killed):
            run("student", teacher=tiny_model, **changes)
    first = {path: path.read_bytes() for path in parts(tmp_path)}
    assert len(first) == 2
    times = {path: path.stat().st_mtime_ns for path in first}
    went_on, _ = run("student", teacher=tiny_model, **changes)
    assert len(parts(tmp_path)) > 3 and all(path.stat().st_mtime_ns == times[path] for path in first)
    after = {path: path.read_bytes() for path in parts(tmp_path)}
    shutil.rmtree(tmp_path / "work")
    again, _ = run("again", teacher=tiny_model, **changes)
    assert {path: path.read_bytes() for path in parts(tmp_path)} == after
    assert files(went_on) == files(again)


@pytest.mark.slow
def test_predictions_are_computed_once_for_all_students_and_a_damaged_part_anew(run, monkeypatch, tmp_path, tiny_model):
    run("one", teacher=tiny_model, **learning(steps=2))
    calls = []
    original = Reading.write
    monkeypatch.setattr(Reading, "write", lambda *given: (calls.append(1), original(*given)))
    run("other", teacher=tiny_model, **learning(steps=2, learning_rate=0.01, teacher={"weight": 0.2}))
    assert not calls
    (part,) = parts(tmp_path)
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    shutil.rmtree(tmp_path / "one.state")
    run("one", teacher=tiny_model, **learning(steps=2))
    assert len(calls) == 1
    run("warmer", teacher=tiny_model, **learning(steps=2, teacher={"temperature": 2.0}))
    assert len(calls) == 2 and len(parts(tmp_path)) == 2


def test_flag_and_setting_are_the_same_and_the_teacher_stands_in_lineage(ava_train, tmp_path, tiny_model):  # noqa: F811
    result = ava_train("--teacher", tiny_model, train={"steps": 2})
    assert result.code == 0, result.err
    made = manifest.read(tmp_path / "model")
    assert made.inputs["teacher"] == manifest.read(tiny_model).digest
    again = ava_train("--log-level", "info", train={"steps": 2, "teacher": {"model": str(tiny_model)}})
    assert again.code == 0 and "up to date" in again.err


def test_teacher_of_another_vocabulary_is_refused_by_name(ava_train, no_steps, tmp_path, tiny_model):  # noqa: F811
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    content = json.loads((other / "tokenizer.json").read_text())
    first, second = list(content["model"]["vocab"])[100:102]
    vocabulary = content["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(content))
    (other / manifest.NAME).unlink()
    finished(other, "train", {})
    line = rf"train.teacher.model = {re.escape(str(other))}: its vocabulary is not that of .*tokenizer.from={other}"
    assert_refused(ava_train("--teacher", other), tmp_path, line)


def test_what_is_no_teacher_is_refused(ava_train, no_steps, tmp_path, tiny_model, tiny_shards):  # noqa: F811
    cases = [
        (("--teacher", "s3://bucket/model"), {}, 2, "train.teacher.model = s3://bucket/model: must be a folder"),
        (("--teacher", tmp_path / "gone"), {}, 1, ".*gone: no such folder"),
        (("--teacher", tiny_shards), {}, 1, f"{tiny_shards}: "),
        (
            ("--teacher", tiny_model),
            {"train": {"sequence_length": 256}, "model": {"max_position_embeddings": 256}},
            2,
            "train.teacher.model = .*: has a context of 128 tokens: train.sequence_length = 256 must be",
        ),
        (("--teacher", tiny_model, "--find-lr"), {}, 2, "train.teacher.model: a search of the rate knows no teacher"),
        ((), {"train": {"teacher": {"weight": 0}}}, 2, "params.yaml: train.teacher.weight = 0.*: must be > 0"),
    ]
    for flags, changes, code, line in cases:
        assert_refused(ava_train(*flags, **changes), tmp_path, line, code=code)


@pytest.mark.slow
def test_two_processes_share_the_computation_and_learn_the_same(run, tmp_path, tiny_model):
    one, _ = run("one", teacher=tiny_model, **learning(steps=2, precision="fp32"))
    alone = {path.name: path.read_bytes() for path in parts(tmp_path)}
    shutil.rmtree(tmp_path / "work")
    two, _ = run("two", teacher=tiny_model, **learning(steps=2, precision="fp32", processes=2))
    assert {path.name: path.read_bytes() for path in parts(tmp_path)} == alone
    first, second = (rows(output)[0]["teacher_kl"] for output in (one, two))
    assert first == pytest.approx(second, rel=1e-3)
