"""`ava evaluate` and `ava compare` on MLflow's page of evaluation runs: text, rows, one run beside another."""

import json
import re
import socket

import pytest

from ava_core.runtime import manifest
from ava_core.tracking.connection import connect
from tests.browser import needs_browser, rendered
from tests.cli.conftest import ava  # noqa: F401  a fixture
from tests.evaluation.comparison.evaluations import write_comparable

QUICK = {"generation": {"max_new_tokens": 8, "num_beams": 2}, "prompts": ["To be", "Enter"]}


@pytest.fixture
def experiment(request):
    return "e-" + "".join(c if c.isalnum() else "-" for c in request.node.name)[:80]


@pytest.fixture
def recorded(mlflow_server, experiment, monkeypatch):
    """The runs of this test's experiment, and the rows of one."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    client = connect(mlflow_server)

    def runs():
        found = client.get_experiment_by_name(experiment)
        return client.search_runs([found.experiment_id], order_by=["start_time ASC"]) if found else []

    def rows(run):
        """Figures by request, in the order of the page."""
        place = [client.get_experiment_by_name(experiment).experiment_id]
        found = client.search_traces(
            locations=place, filter_string=f"attributes.run_id = '{run.info.run_id}'", include_spans=False
        )
        return {
            row.info.request_preview: {item.name: item.feedback.value for item in row.info.assessments} for row in found
        }

    return runs, rows


@pytest.fixture
def evaluate(ava, tmp_path, tiny_model, tiny_shards, make_params, experiment, mlflow_server):  # noqa: F811
    def call(*flags, **environment):
        params = make_params(evaluate=QUICK)
        folders = ("--model", tiny_model, "--shards", tiny_shards, "--output", tmp_path / "evaluation")
        common = ("--params", params, "--work", tmp_path / "work", "--set", f"register.experiment={experiment}")
        given = {"AVA_TRACKING_URI": mlflow_server, **environment}
        return ava("evaluate", *folders, *common, "--quiet", *flags, **given)

    return call


def test_evaluation_at_a_shell_is_a_run_with_its_text_and_a_row_for_each_document_and_sample(
    evaluate, recorded, tmp_path
):
    runs, rows = recorded
    result = evaluate()
    assert result.code == 0, result.err
    (run,) = runs()
    assert run.info.status == "FINISHED" and run.data.tags["mlflow.runType"] == "evaluation"
    figures = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert run.data.metrics.items() >= figures.items()
    assert run.data.params["evaluate.generation.max_new_tokens"] == "8"
    made = manifest.read(tmp_path / "evaluation")
    (text,) = run.inputs.dataset_inputs
    assert made.inputs["shards"].startswith(text.dataset.digest) and text.tags[0].value == "test"
    lines = [json.loads(line) for line in (tmp_path / "evaluation" / "losses.jsonl").read_text().splitlines()]
    found = rows(run)
    documents = [json.loads(request)["document"] for request in found if "document" in request]
    assert documents == [line["name"] for line in lines]
    accuracy = sum(lines[0]["models"]["float"]["correct"]) / sum(lines[0]["tokens"])
    assert next(iter(found.values()))["float accuracy"] == pytest.approx(accuracy)
    samples = [json.loads(request) for request in found if "prompt" in request]
    assert {sample["prompt"] for sample in samples} == {"To be", "Enter"} and len(samples) == 6
    assert re.search(r"mlflow: http://.*/runs/" + run.info.run_id, result.err)
    assert evaluate("--force").code == 0
    assert len(runs()) == 1 and rows(run) == found


def test_step_of_a_pipeline_has_the_rows_too_and_once(evaluate, recorded):
    runs, rows = recorded
    for _ in range(2):
        assert evaluate(AVA_PIPELINE_RUN="p-of-rows").code == 0
    parent, run = sorted(runs(), key=lambda run: "mlflow.parentRunId" in run.data.tags)
    assert len(rows(run)) == 6 + sum("document" in request for request in rows(run)) and not rows(parent)
    assert run.data.tags["mlflow.runType"] == "evaluation" and "mlflow.runType" not in parent.data.tags


def test_evaluation_that_fails_leaves_no_run(evaluate, recorded):
    assert evaluate("--set", "evaluate.prompts=[]", "--set", "evaluate.context=100000").code != 0
    assert recorded[0]() == []


@pytest.fixture
def sides(tmp_path):
    write_comparable(tmp_path / "base", schemes=["int8"])
    write_comparable(tmp_path / "worse", 0.01, schemes=["int8"])
    write_comparable(tmp_path / "better", -0.01)
    return tmp_path


def compare(ava, experiment, uri, *names):  # noqa: F811
    return ava("compare", *names, "--set", f"register.experiment={experiment}", AVA_TRACKING_URI=uri)


@pytest.mark.slow
def test_compared_evaluations_have_runs_and_pages_that_hold_them_against_the_first(
    ava,  # noqa: F811
    recorded,
    sides,
    experiment,
    mlflow_server,
):
    runs, rows = recorded
    result = compare(ava, experiment, mlflow_server, "base", "worse", "better")
    assert result.code == 0, result.err
    base, worse, better = runs()
    assert [run.info.run_name for run in runs()] == ["evaluate base", "evaluate worse", "evaluate better"]
    assert base.data.metrics["test_bits_per_byte"] < worse.data.metrics["test_bits_per_byte"]
    assert "int8_test_bits_per_byte" in base.data.metrics
    pages = re.findall(r"mlflow: (\S+) beside base: (\S+)", result.err)
    assert [name for name, _ in pages] == ["worse", "better"]
    for (_, page), other in zip(pages, (worse, better), strict=True):
        assert f"selectedRunUuid={other.info.run_id}&compareToRunUuid={base.info.run_id}" in page
    # What the page holds against each other are rows with the same request.
    found = rows(base)
    documents = [request for request in found if "document" in request]
    assert len(documents) == 60 and documents == [request for request in rows(worse) if "document" in request]
    assert compare(ava, experiment, mlflow_server, "base", "worse").code == 0
    assert len(runs()) == 3 and rows(base) == found


def test_comparison_fails_of_no_server(ava, sides, experiment, caplog):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    result = compare(ava, experiment, f"http://127.0.0.1:{port}", "base", "worse")
    assert result.code == 0
    assert result.err.count("mlflow: the comparison isn't recorded: ") == 1


def test_comparison_without_a_server_says_nothing_of_it(ava, sides):  # noqa: F811
    result = ava("compare", "base", "worse")
    assert result.code == 0 and "mlflow" not in result.err


def test_compared_evaluation_that_has_a_run_keeps_it(ava, recorded, sides, experiment, mlflow_server, monkeypatch):  # noqa: F811
    monkeypatch.setattr("ava_core.evaluation.rows.MAX_DOCUMENTS", 2)
    for name in ("worse", "better"):
        assert compare(ava, experiment, mlflow_server, "base", name).code == 0
    assert [run.info.run_name for run in recorded[0]()] == ["evaluate base", "evaluate worse", "evaluate better"]


@needs_browser
@pytest.mark.slow
def test_page_shows_the_rows_of_both_side_by_side(ava, sides, experiment, mlflow_server, monkeypatch):  # noqa: F811
    monkeypatch.setattr("ava_core.evaluation.rows.MAX_DOCUMENTS", 2)
    result = compare(ava, experiment, mlflow_server, "base", "worse")
    (page,) = re.findall(r"worse beside base: (\S+)", result.err)
    shown = rendered(page)
    assert "evaluate base" in shown and "evaluate worse" in shown
    assert "float bits per byte" in shown and "int8 accuracy" in shown
    assert re.search(r">[1-9] of [1-9]<", shown)  # in a window of this height it draws none of them
