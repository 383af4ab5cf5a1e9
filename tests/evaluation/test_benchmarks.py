"""`evaluate.tasks` in the step: figures of each model, in every place where figures are; nothing without tasks."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ava_core.config.gate import BoundConfig
from ava_core.evaluation import benchmarks
from ava_core.generation.loading import load_model
from ava_core.registry.gates.bounds import check_bounds

TASKS = [{"name": "swapped_words", "limit": 40}, {"name": "next_line", "limit": 20}]
NAMES = ("swapped_words", "next_line")


@pytest.fixture(scope="module")
def benchmarked(run_evaluation, tiny_int8, tmp_path_factory):
    return run_evaluation(tmp_path_factory.mktemp("benchmarked"), {"tasks": TASKS}, quantized=[tiny_int8])


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_model_has_the_figures_of_each_task(benchmarked):
    for prefix in ("", "int8_"):
        for name in NAMES:
            assert 0 <= benchmarked.metrics[f"{prefix}tasks.{name}.acc"] <= 1
            assert 0 < benchmarked.metrics[f"{prefix}tasks.{name}.acc_stderr"] < 0.2


def test_figures_are_those_of_unmodified_lm_eval_on_the_files_that_are_left(benchmarked, tiny_model, monkeypatch):
    model, tokenizer = load_model(tiny_model, threads=1)
    folder = benchmarked.output / "tasks"
    monkeypatch.chdir(folder)  # where a user starts it: the files name their questions without a folder
    found = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu"),
        tasks=list(NAMES),
        task_manager=TaskManager(include_defaults=False, include_path=str(folder)),
        bootstrap_iters=0,
    )
    for name in NAMES:
        assert found["results"][name]["acc,none"] == benchmarked.metrics[f"tasks.{name}.acc"]
    ours = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    for name in NAMES:
        theirs = [sample["acc"] for sample in found["samples"][name]]
        assert [row["acc"] for row in ours if (row["model"], row["task"]) == ("float", name)] == theirs


def test_report_and_summary_show_them_with_their_errors(benchmarked):
    report, summary = ((benchmarked.output / name).read_text() for name in ("report.html", "summary.md"))
    for name in NAMES:
        value, error = (benchmarked.metrics[f"tasks.{name}.{figure}"] for figure in ("acc", "acc_stderr"))
        assert f"{value:.4f} <small>± {error:.4f}</small>" in report
        assert f"{value:.4f} ± {error:.4f}" in summary
    assert report.count('class="error"') == 2 * (1 + 2)  # acc, and acc_norm of next_line, of two models


def test_gate_bounds_a_task_against_the_champion_and_each_quantised_model(benchmarked):
    figures = benchmarked.metrics
    gate = {
        "words": BoundConfig(figure="tasks.swapped_words.acc", at_least="champion", tolerance=0.01),
        "rounded": BoundConfig(
            figure="quantized_tasks.swapped_words.acc", at_least="tasks.swapped_words.acc", tolerance=1.0
        ),
    }
    better = {**figures, "tasks.swapped_words.acc": figures["tasks.swapped_words.acc"] + 0.02}
    assert [bound.passed for bound in check_bounds(gate, figures, ["int8"], figures)] == [True, True]
    assert [bound.passed for bound in check_bounds(gate, figures, ["int8"], better)] == [False, True]


def test_killed_run_runs_no_finished_task_again_and_ends_with_the_same_bytes(
    benchmarked, run_evaluation, tiny_int8, tmp_path, monkeypatch
):
    from ava_core.tasks import running

    ran, run_task = [], running.run_task

    def dies(task, lm):
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(task.entry.name)
        return run_task(task, lm)

    monkeypatch.setattr(running, "run_task", dies)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(tmp_path, {"tasks": TASKS}, quantized=[tiny_int8])
    shutil.rmtree(tmp_path / "output")
    monkeypatch.setattr(running, "run_task", lambda task, lm: ran.append(task.entry.name) or run_task(task, lm))
    again = run_evaluation(tmp_path, {"tasks": TASKS}, quantized=[tiny_int8])
    assert ran == ["swapped_words", "next_line", "swapped_words", "next_line"]
    assert files(again.output) == files(benchmarked.output)


def test_without_tasks_nothing_is_written_of_them(evaluated):
    contents = json.loads((evaluated.output / "evaluation.json").read_text())
    assert "tasks" not in contents
    assert not (evaluated.output / "tasks").exists()
    assert not any(name.startswith("tasks.") for name in evaluated.metrics)
    assert "Benchmarks" not in (evaluated.output / "report.html").read_text()


@pytest.mark.slow
def test_step_without_tasks_and_the_command_line_import_no_lm_eval():
    code = "import sys, ava_core.cli.main, ava_core.evaluation.evaluate as e; print('lm_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_files_name_nothing_of_this_machine(benchmarked):
    for path in (benchmarked.output / "tasks").iterdir():
        assert "/tmp" not in path.read_text()
    settings = yaml.safe_load((benchmarked.output / "tasks" / "next_line.yaml").read_text())
    assert settings["dataset_kwargs"]["data_files"] == {"test": "next_line.jsonl"}
    assert benchmarks.ANSWERS in {path.name for path in (benchmarked.output / "tasks").iterdir()}
