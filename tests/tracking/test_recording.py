"""A step in a pipeline and its run: recorded, tried again, failed, killed, and with a server that is away."""

import json
import socket
import time
from types import SimpleNamespace

import pytest

from ava_core.runtime.outcome import Outcome
from ava_core.tracking.connection import connect
from ava_core.tracking.recording import record_end_of_pipeline
from tests.registry.proxy import Proxy
from tests.runtime.conftest import counting  # noqa: F401  the tiny step `count`


@pytest.fixture
def recording(counting, mlflow_server, request, monkeypatch):  # noqa: F811
    """The tiny step in a pipeline run of this test's own, and a look at what MLflow has of it."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    client = connect(mlflow_server)
    pipeline = "p-" + "".join(c if c.isalnum() else "-" for c in request.node.name)[:80]

    def run(*flags, uri=mlflow_server, **environment):
        given = {"AVA_TRACKING_URI": uri, "AVA_PIPELINE_RUN": pipeline, "AVA_GIT_COMMIT": "c" * 40, **environment}
        return counting.run("--set", f"register.experiment={pipeline}", *flags, **given)

    def runs(filter_string=""):
        experiment = client.get_experiment_by_name(pipeline)
        return client.search_runs([experiment.experiment_id], filter_string) if experiment else []

    def nested():
        (found,) = runs("tags.`ava.task` = 'count a'")
        return found

    return SimpleNamespace(
        run=run, runs=runs, nested=nested, client=client, pipeline=pipeline, output=counting.output, uri=mlflow_server
    )


def test_step_is_a_nested_run_with_its_parameters_figures_and_lineage(recording):
    assert recording.run().returncode == 0
    run = recording.nested()
    manifest = json.loads((recording.output / "manifest.json").read_text())
    assert run.info.status == "FINISHED" and run.info.run_name == "count a"
    assert run.data.params == {"seed": "1337", "letter": "a"}
    assert run.data.metrics["blocks"] == 4 and run.data.metrics["wall_seconds"] >= 0
    tags = run.data.tags
    assert tags["ava.key"] == manifest["key"] and json.loads(tags["ava.inputs"]) == manifest["inputs"]
    assert (tags["ava.step"], tags["ava.reused"], tags["mlflow.source.git.commit"]) == ("count", "false", "c" * 40)
    parent = recording.client.get_run(tags["mlflow.parentRunId"])
    assert parent.info.status == "RUNNING" and "mlflow.parentRunId" not in parent.data.tags
    # what pipeline runs are compared by: the whole configuration, and figures without clocks
    assert parent.data.params["train.optimizer"] and parent.data.params["seed"] == "1337"
    assert parent.data.metrics == {"a_blocks": 4}


def test_step_tried_again_and_reused_adds_no_run_and_no_figure(recording):
    assert recording.run().returncode == 0
    assert recording.run().returncode == 0
    assert len(recording.runs()) == 2
    run = recording.nested()
    assert len(recording.client.get_metric_history(run.info.run_id, "blocks")) == 1
    assert run.info.status == "FINISHED" and run.data.tags["ava.reused"] == "false"


def test_reused_step_of_another_pipeline_run_says_so_and_has_the_same_figures(recording, tmp_path):
    assert recording.run().returncode == 0
    assert recording.run(AVA_PIPELINE_RUN=f"{recording.pipeline}-2").returncode == 0
    (second,) = recording.runs(f"tags.`ava.pipeline_run` = '{recording.pipeline}-2' and tags.`ava.task` = 'count a'")
    assert second.data.tags["ava.reused"] == "true"
    assert second.data.metrics["blocks"] == 4


def test_given_run_is_filled_left_open_and_no_other_is_made(recording):
    client = recording.client
    experiment = client.create_experiment(recording.pipeline)
    given = client.create_run(experiment).info.run_id
    # the plugin's server counts, not the pipeline's parameter
    nowhere = "http://127.0.0.1:9"
    result = recording.run(uri=nowhere, MLFLOW_RUN_ID=given, MLFLOW_TRACKING_URI=recording.uri)
    assert result.returncode == 0
    (run,) = recording.runs()
    assert run.info.run_id == given and run.info.status == "RUNNING"
    assert run.data.metrics["blocks"] == 4 and run.data.params["letter"] == "a"


def test_given_run_that_someone_has_ended_stays_ended(recording):
    given = recording.client.create_run(recording.client.create_experiment(recording.pipeline)).info.run_id
    recording.client.set_terminated(given)
    assert recording.run(MLFLOW_RUN_ID=given).returncode == 0
    run = recording.client.get_run(given)
    assert run.info.status == "FINISHED" and run.data.metrics["blocks"] == 4


def test_given_run_that_is_not_there_is_a_warning(recording):
    result = recording.run(MLFLOW_RUN_ID="0" * 32)
    assert result.returncode == 0
    assert result.stderr.count("the server has no such run") == 2
    assert recording.runs() == []


def test_deleted_experiment_is_said_before_the_work_and_once(recording):
    recording.client.delete_experiment(recording.client.create_experiment(recording.pipeline))
    result = recording.run()
    assert result.returncode == 1 and not recording.output.exists()
    lines = [line for line in result.stderr.splitlines() if recording.pipeline in line]
    assert len(lines) == 1 and "WARNING" not in result.stderr
    assert f"register.experiment = {recording.pipeline}: is deleted on {recording.uri}: name another, or" in lines[0]
    recording.client.restore_experiment(recording.client.get_experiment_by_name(recording.pipeline).experiment_id)
    assert recording.run().returncode == 0


def test_experiment_deleted_while_a_step_runs_costs_it_a_warning(recording):
    logged = []

    def delete_once_it_has_begun(method, path):
        if path.endswith("log-batch"):  # the step's parameters, its parent's
            logged.append(path)
            if len(logged) == 2:
                experiment = recording.client.get_experiment_by_name(recording.pipeline)
                recording.client.delete_experiment(experiment.experiment_id)

    with Proxy(recording.uri, after=delete_once_it_has_begun) as proxy:
        result = recording.run(uri=proxy.address)
    assert result.returncode == 0 and recording.output.exists()
    assert "the step isn't recorded: register.experiment" in result.stderr


def test_failed_step_says_why_and_its_second_try_goes_on_in_the_same_run(recording):
    assert recording.run(COUNT_FAIL="nan").returncode == 1
    run = recording.nested()
    assert run.info.status == "FAILED"
    assert "loss = nan: not a finite number" in run.data.tags["ava.fault"]
    assert recording.run().returncode == 0
    again = recording.nested()
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"


def test_without_a_pipeline_run_nothing_is_recorded(recording):
    assert recording.run(AVA_PIPELINE_RUN="").returncode == 0
    assert recording.runs() == []


@pytest.mark.parametrize("uri", ["", "./mlruns", "sqlite:///nowhere/db"])
def test_address_of_no_server_fails_nothing(recording, uri):
    result = recording.run(uri=uri)
    assert result.returncode == 0
    assert result.stderr.count("mlflow: nothing is recorded") == (uri == "./mlruns")


def test_server_that_is_away_costs_one_warning_at_the_end_without_the_password(recording):
    started = time.monotonic()
    result = recording.run(uri="http://me:hunter3@127.0.0.1:9")
    assert result.returncode == 0
    assert time.monotonic() - started < 200
    warnings = [line for line in result.stderr.splitlines() if "mlflow:" in line]
    assert len(warnings) == 1 and "the step isn't recorded" in warnings[0] and "no MLflow server answers" in warnings[0]
    assert "hunter3" not in result.stderr


def test_server_that_hangs_holds_a_step_for_a_bounded_time(recording, monkeypatch):
    monkeypatch.setattr("ava_core.tracking.recording.PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        result = recording.run(uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert result.returncode == 0 and time.monotonic() - started < 200
    assert result.stderr.count("no MLflow server answers") == 1


def test_server_that_comes_up_while_the_step_runs_has_the_whole_step(recording):
    refused = ["beginning"]
    with Proxy(recording.uri, before=lambda method, path: 503 if refused and refused.pop() else None) as proxy:
        result = recording.run(uri=proxy.address)
    assert result.returncode == 0 and "HTTP 503" in result.stderr
    run = recording.nested()
    assert run.info.status == "FINISHED" and run.data.metrics["blocks"] == 4


def test_process_that_only_helps_the_first_one_records_nothing(recording):
    assert recording.run(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1").returncode == 0
    assert recording.runs() == []


@pytest.mark.parametrize(
    ("state", "status"), [("SUCCEEDED", "FINISHED"), ("FAILED", "FAILED"), ("CANCELLED", "KILLED")]
)
def test_exit_handler_ends_the_parent_with_the_pipelines_outcome(recording, state, status):
    assert recording.run().returncode == 0
    environment = {"AVA_TRACKING_URI": recording.uri, "AVA_PIPELINE_RUN": recording.pipeline}
    outcome = Outcome(state=state, failed_task=None if state == "SUCCEEDED" else "train", message="token=abc went off")
    record_end_of_pipeline(outcome, {**environment, "MLFLOW_RUN_ID": "someone's"})  # then KFP's plugin ends its own
    (parent,) = [run for run in recording.runs() if "ava.task" not in run.data.tags]
    assert parent.info.status == "RUNNING"
    page = record_end_of_pipeline(outcome, environment)
    assert page is not None and f"/runs/{parent.info.run_id}?" in page
    parent = recording.client.get_run(parent.info.run_id)
    assert (parent.info.status, parent.data.tags["ava.outcome"]) == (status, state)
    assert parent.data.tags.get("ava.fault") == (None if state == "SUCCEEDED" else "train: token=*** went off")
    assert recording.nested().info.status == "FINISHED"


def test_exit_handler_fails_nothing_without_a_server(caplog):
    outcome = Outcome(state="FAILED", failed_task="train", message="")
    record_end_of_pipeline(outcome, {"AVA_TRACKING_URI": "http://127.0.0.1:9", "AVA_PIPELINE_RUN": "1"})
    assert "the end of the pipeline isn't recorded: http://127.0.0.1:9: no MLflow server answers" in caplog.text


@pytest.mark.slow
def test_slow_server_that_answers_gets_everything(recording, monkeypatch):
    """Each answer takes less than the patience, and all of them together several times as much."""
    monkeypatch.setattr("ava_core.tracking.recording.PATIENCE", 3.0)
    with Proxy(recording.uri, before=lambda *_: time.sleep(0.4)) as proxy:
        result = recording.run(uri=proxy.address)
        assert len(proxy.seen) * 0.4 > 3.0
    assert result.returncode == 0 and "mlflow:" not in result.stderr
    assert recording.nested().info.status == "FINISHED"


def test_runs_say_who_made_them_and_of_which_data(recording):
    assert recording.run().returncode == 0
    for run in recording.runs():
        tags = run.data.tags
        assert tags["mlflow.user"] and tags["mlflow.source.type"] == "LOCAL"
        assert tags["mlflow.source.name"] in ("ava pipeline", "ava count")
