"""`ava` without arguments: the command that comes next in a folder, and words that are nearly a command or a flag."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ava_core.cli.next_step import OPTIONAL
from ava_core.steps.table import STEPS
from pipelines.stages import render

ROOT = Path(__file__).parents[2]
PIPELINE = "quantize: {schemes: [int8, int4]}\n"


def finish(folder, *outputs):
    for output in outputs:
        (folder / output).mkdir(parents=True)
        (folder / output / "manifest.json").write_text("{}")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "params.yaml").write_text(PIPELINE)
    (tmp_path / "data" / "raw" / "shakespeare").mkdir(parents=True)
    return tmp_path


def commands(result):
    assert (result.code, result.err) == (0, "")
    return [line.strip() for line in result.out.splitlines() if line.startswith("    ")]


@functools.cache
def stages(aligned):
    return yaml.safe_load(render(list(aligned)))["stages"]


def stage(name, aligned=()):
    """What DVC runs for a step."""
    command = stages(aligned)[name]["cmd"]
    return command if isinstance(command, str) else command[0]


def test_a_folder_without_parameters_gets_some(ava, tmp_path):
    (command,) = commands(ava())
    assert command == "ava config show --preset cpu/tiny --yaml > params.yaml"


def test_the_first_command_in_an_empty_folder_fetches_the_corpus(ava, tmp_path):
    (tmp_path / "params.yaml").write_text(PIPELINE)
    assert commands(ava()) == ["python -m ava_core.data.fetch --output data/raw", stage("preprocess")]
    (tmp_path / "Makefile").write_text("")
    shown = ava()
    assert commands(shown)[0] == "make data" and "make pipeline-local" in shown.out


def test_each_step_follows_the_one_before_with_the_command_that_dvc_runs(ava, place):
    assert commands(ava()) == [stage("preprocess")]
    finish(place, "outputs/shards")
    shown = ava()
    assert shown.out.startswith("Here are outputs/shards. Next:") and commands(shown) == [stage("train")]
    finish(place, "outputs/model")
    assert commands(ava()) == [stage("quantize").replace("${item.scheme}", "int8")]
    finish(place, "outputs/quantized/int8")
    assert commands(ava()) == [stage("quantize").replace("${item.scheme}", "int4")]
    finish(place, "outputs/quantized/int4")
    both = "--quantized outputs/quantized/int8 --quantized outputs/quantized/int4"
    assert commands(ava()) == [stage("evaluate").replace("--quantized outputs/quantized", both)]
    finish(place, "outputs/evaluation", "outputs/gate")
    assert commands(ava())[0].startswith("ava register --params params.yaml --model outputs/model")


def test_alignment_that_is_asked_for_comes_after_training(ava, place):
    (place / "params.yaml").write_text("align: {stages: [sft]}\n")
    finish(place, "outputs/shards", "outputs/model")
    assert commands(ava()) == [stage("conversations", ("sft",))]
    finish(place, "outputs/conversations")
    assert commands(ava()) == [stage("sft", ("sft",))]


def test_a_finished_folder_says_what_to_do_with_the_model(ava, place):
    finish(place, *(f"outputs/{spec.output}" for spec in STEPS.values() if spec.name not in OPTIONAL | {"quantize"}))
    finish(place, "outputs/quantized/int8", "outputs/quantized/int4")
    assert commands(ava())[:2] == [
        'ava generate --model outputs/model --prompt "To be, or" --stream',
        "ava serve --model outputs/model",
    ]


def test_a_run_of_the_pipeline_counts(ava, place):
    for name in ("ava-1", "ava-2"):
        finish(place, f".ava/runs/{name}/train/model")
    assert commands(ava())[1] == "ava serve --model .ava/runs/ava-2/train/model"


def test_an_unfinished_output_does_not_count(ava, place):
    (place / "outputs" / "shards").mkdir(parents=True)
    assert commands(ava()) == [stage("preprocess")]


def test_wrong_parameters_are_told(ava, place):
    (place / "params.yaml").write_text("train: {stepps: 3}\n")
    shown = ava()
    assert shown.code == 2 and "did you mean train.steps?" in shown.err


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["trian"], "'train'"), (["config", "shwo"], "'show'"), (["train", "--parms", "x"], "--params")],
)
def test_a_word_that_is_nearly_a_command_or_a_flag_is_told_the_right_one(ava, words, meant):
    shown = ava(*words)
    assert shown.code == 2 and meant in shown.err and shown.err.count("\n") == 1


def test_a_closed_pipe_is_no_failure_worth_a_traceback():
    for words in ("", "config"):
        command = f"{sys.executable} -m ava_core.cli.main {words} | true"
        result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert "Traceback" not in result.stderr
