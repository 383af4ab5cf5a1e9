"""The closing lines, from results made by hand; whole runs are in test_local.py."""

import json

import pytest

from pipelines import summary
from pipelines.results import PipelineResult, TaskResult


def result_of(tmp_path, *tasks: TaskResult, fault: str = "") -> PipelineResult:
    return PipelineResult(order=["preprocess", "train", "record-outcome"], tasks=list(tasks), fault=fault)


def task(tmp_path, name: str, status: str = "succeeded", component: str = "", **given) -> TaskResult:
    known = {"cached": False, "seconds": 1.25, **given}
    return TaskResult(name=name, component=component or name, status=status, folder=tmp_path / name, **known)


def test_table_is_in_the_order_of_the_pipeline_with_what_did_not_run(tmp_path):
    figures = {"train_tokens": 1234567, "vocab_size": 4096.0, "documents_kept": 3, "other": 1}
    result = result_of(
        tmp_path,
        task(tmp_path, "preprocess", cached=True, figures=figures),
        task(tmp_path, "record-outcome", "failed", seconds=10.0),
        fault="x",
    )
    assert list(summary.task_table(result)) == [
        "step            status     seconds  cached  figures",
        "preprocess      succeeded      1.2  yes     documents_kept 3, train_tokens 1,234,567, vocab_size 4,096",
        "train           not run",
        "record-outcome  failed        10.0  no",
        "total                         11.2",
    ]


def test_each_task_of_a_component_has_its_line(tmp_path):
    tasks = [task(tmp_path, name, component="train", figures={"train_loss": 1}) for name in ("train", "train.2")]
    names = [line.split()[0] for line in summary.task_table(result_of(tmp_path, *tasks))]
    assert names == ["step", "preprocess", "train", "train.2", "record-outcome", "total"]


def test_figures_are_those_of_the_component_s_step(tmp_path):
    figures = {"compression_ratio": 3.91, "parity_top1_agreement": 0.99123, "model_bytes": 7}
    result = PipelineResult(order=["quantize-int8"], tasks=[task(tmp_path, "quantize-int8", figures=figures)])
    assert list(summary.task_table(result))[1].endswith("compression_ratio 3.91, parity_top1_agreement 0.9912")


def test_failure_of_kfp_itself_is_said_where_no_task_failed(tmp_path):
    result = result_of(tmp_path, task(tmp_path, "preprocess"), fault="IndexError: list index out of range")
    assert not result.succeeded and result.failed is None
    assert next(summary.failure(result, "again")) == "failed: IndexError: list index out of range"


def test_failed_task_without_a_log_has_no_empty_tail(tmp_path):
    result = result_of(tmp_path, task(tmp_path, "preprocess", "failed"), fault="x")
    assert not any("the end of" in line for line in summary.failure(result, "again"))


@pytest.mark.parametrize(
    ("text", "start", "shown"),
    [
        ("To be. Or not? Perhaps", 5, "To be. Or not?"),
        ("To be. Or not", 6, "To be. Or not"),
        ("She said 'no.' Then", 3, "She said 'no.'"),
        ("word " * 100, 0, ("word " * 48).strip()),
        ("x" * 500, 0, "x" * 240),
        ("a\x1b[2Jb.\nc.", 0, "a\N{REPLACEMENT CHARACTER}[2Jb.\nc."),
    ],
)
def test_sample_is_cut_at_a_sentence_else_at_a_word(text, start, shown):
    assert summary.cut_at_sentence(text, start) == shown


def test_samples_are_the_float_model_s_and_nucleus_ones_come_first():
    samples = [
        {"model": model, "strategy": strategy, "prompt": "", "text": f"{model} {strategy}"}
        for model, strategy in [("int8", "nucleus"), ("float", "greedy"), ("float", "beam"), ("float", "nucleus")]
    ]
    assert summary.pick_samples(samples) == ["float nucleus", "float greedy", "float beam"]


def test_run_that_is_named_is_the_pipeline_s_and_not_a_step_s(tmp_path):
    page = "http://127.0.0.1:5000/#/experiments/1/runs/parent?workflowType=machine_learning"
    failed = task(tmp_path, "train", "failed", fault="exit code 1")
    handler = task(tmp_path, "record-outcome")
    result = result_of(tmp_path, failed, handler)
    assert not any("MLflow" in line for line in summary.failure(result, "make pipeline-local"))
    (handler.folder / "outcome").mkdir(parents=True)
    (handler.folder / "outcome" / "outcome.json").write_text(json.dumps({"state": "FAILED", "run_url": page}))
    assert f"MLflow run: {page}" in list(summary.failure(result, "make pipeline-local"))


def test_refusal_by_a_lower_bound_says_how_far_below_it_is():
    bound = {"bound": "accuracy", "figure": "test_accuracy", "value": 0.25, "limit": 0.3, "at_least": True}
    decision = {"name": "m", "version": 1, "aliases": [], "promoted": False, "decision": [{**bound, "passed": False}]}
    lines = list(summary._decision(decision))
    assert lines[1].endswith("refused: test_accuracy 0.2500 is 0.0500 below 0.3000 (accuracy)")
