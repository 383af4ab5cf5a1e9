"""The closing lines, from results made by hand; whole runs are in test_local.py."""

import pytest

from pipelines import summary
from pipelines.host_runner import PipelineResult, TaskResult


def result_of(tmp_path, *tasks: tuple[str, str], fault: str = "") -> PipelineResult:
    order = ["preprocess", "train", "record-outcome"]
    made = [TaskResult(name=name, status=status, seconds=1.25, folder=tmp_path / name) for name, status in tasks]
    return PipelineResult(order=order, tasks=made, fault=fault)


def test_table_is_in_the_order_of_the_pipeline_with_what_did_not_run(tmp_path):
    result = result_of(tmp_path, ("preprocess", "failed"), ("record-outcome", "computed"), fault="x")
    assert list(summary.task_table(result)) == [
        "step            status     seconds",
        "preprocess      failed         1.2",
        "train           not run",
        "record-outcome  computed       1.2",
        "total                          2.5",
    ]


def test_failure_of_kfp_itself_is_said_where_no_task_failed(tmp_path):
    result = result_of(tmp_path, ("preprocess", "computed"), fault="IndexError: list index out of range")
    assert not result.succeeded and result.failed is None
    assert next(summary.failure(result, "again")) == "failed: IndexError: list index out of range"


def test_failed_task_without_a_log_has_no_empty_tail(tmp_path):
    result = result_of(tmp_path, ("preprocess", "failed"), fault="x")
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
