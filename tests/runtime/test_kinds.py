"""Inputs go by what an output is, not by the step that made it."""

from pathlib import Path
from unittest import mock

import pytest

from ava_core.config import AvaConfig
from ava_core.errors import AvaError
from ava_core.progress import Progress
from ava_core.runtime import manifest
from ava_core.runtime.step import Request, run_step
from ava_core.steps.kinds import MODEL
from ava_core.steps.spec import StepSpec
from ava_core.steps.table import STEPS

TUNE = StepSpec(
    name="tune",
    summary="Train a model further.",
    output="tuned",
    kind=MODEL,
    sections=("seed",),
    function="ava_core.errors:one_line",  # stands for the code of the step
)


@pytest.fixture(autouse=True)
def second_producer_of_models():
    with mock.patch.dict(STEPS, {TUNE.name: TUNE}):
        yield


def run(step: str, folder: Path, **inputs: Path) -> Path:
    """A finished output of a step that computes nothing."""
    spec = STEPS[step]

    def compute(step_run):
        (step_run.output / "weights").write_text(step)
        step_run.metrics.update(dict.fromkeys(spec.metrics, 1.0))
        step_run.timings.update(dict.fromkeys(spec.timings, 1.0))

    request = Request(
        spec=spec,
        config=AvaConfig(threads=1),
        inputs={name: [path] for name, path in inputs.items()},
        choices={choice.name: choice.values[0] for choice in spec.choices},
        output=folder / spec.output,
        work=folder / "work",
        progress=Progress(quiet=True),
    )
    run_step(request, compute)
    return request.output


@pytest.mark.parametrize("producer", ["train", "tune"])
def test_a_model_is_taken_from_whichever_step_makes_models(tmp_path, producer):
    shards = run("preprocess", tmp_path)
    model = run("train", tmp_path, shards=shards) if producer == "train" else run("tune", tmp_path)
    assert manifest.read(model).step == producer
    quantized = run("quantize", tmp_path, model=model, shards=shards)
    evaluation = run("evaluate", tmp_path, model=model, shards=shards, quantized=quantized)
    assert manifest.read(quantized).inputs["model"] == manifest.read(model).digest
    assert manifest.read(evaluation).made_from["model"] == manifest.read(model).sha256


def test_what_is_no_model_is_refused_and_all_that_make_models_are_named(tmp_path):
    shards = run("preprocess", tmp_path)
    with pytest.raises(
        AvaError,
        match="is the output of `ava preprocess`, not of `ava train` or `ava sft` or `ava align --method dpo` or `ava",
    ):
        run("quantize", tmp_path, model=shards, shards=shards)
