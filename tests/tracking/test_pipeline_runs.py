"""One parent and one nested run for each step, on a real server, whoever comes first."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ava_core.tracking.connection import connect
from ava_core.tracking.pipeline_runs import (
    PARENT,
    PIPELINE_RUN,
    TASK,
    Task,
    end_pipeline,
    identity,
    open_task,
    pipeline_run_id,
)
from ava_core.tracking.rest import Server
from ava_core.tracking.run import open_run


@pytest.fixture
def client(mlflow_server):
    return connect(mlflow_server)


@pytest.fixture
def server(mlflow_server):
    return Server(mlflow_server, {}, 60)


@pytest.fixture
def pipeline(request):
    """Id of a pipeline run of this test's own; the experiment has the same name."""
    return "p-" + "".join(c if c.isalnum() else "-" for c in request.node.name)[:80]


def task(pipeline, name="train", **tags):
    return Task(pipeline_run=pipeline, name=name, experiment=pipeline, tags=tags)


def runs(client, pipeline):
    """The pipeline run's active parents and nested runs."""
    experiment_id = client.get_experiment_by_name(pipeline).experiment_id
    found = client.search_runs([experiment_id], f"tags.`{PIPELINE_RUN}` = '{pipeline}'")
    return [run for run in found if TASK not in run.data.tags], [run for run in found if TASK in run.data.tags]


def test_steps_nest_under_one_parent_and_a_step_tried_again_is_the_same_run(server, client, pipeline):
    above, first = open_task(server, task(pipeline))
    _, second = open_task(server, task(pipeline, "quantize int8", scheme="int8"))
    assert open_task(server, task(pipeline))[1].run_id == first.run_id != second.run_id
    (parent,), nested = runs(client, pipeline)
    assert parent.info.run_id == above.run_id and parent.info.run_name == pipeline
    assert {run.info.run_name for run in nested} == {"train", "quantize int8"}
    assert {run.data.tags[PARENT] for run in nested} == {parent.info.run_id}
    assert parent.info.status == "RUNNING"
    assert client.get_run(second.run_id).data.tags["scheme"] == "int8"


def test_other_pipeline_run_has_a_parent_of_its_own(server, pipeline):
    first, _ = open_task(server, task(pipeline))
    other = Task(pipeline_run=f"{pipeline}-2", name="train", experiment=pipeline, tags={})
    assert open_task(server, other)[0].run_id != first.run_id


@pytest.mark.parametrize("names", [[f"step {i}" for i in range(6)], ["train"] * 6], ids=["six steps", "one step"])
def test_steps_that_begin_at_the_same_moment_share_one_parent(mlflow_server, client, pipeline, names):
    connect(mlflow_server).create_experiment(pipeline)
    together = threading.Barrier(len(names), timeout=120)  # so that one that fails leaves nobody waiting for ever

    def begin_and_end(name):
        together.wait()
        open_task(Server(mlflow_server, {}, 60), task(pipeline, name))
        together.wait()
        return open_task(Server(mlflow_server, {}, 60), task(pipeline, name))[1].run_id

    with ThreadPoolExecutor(len(names)) as pool:
        opened = set(pool.map(begin_and_end, names))
    (parent,), nested = runs(client, pipeline)
    assert {run.info.run_id for run in nested} == opened and len(opened) == len(set(names))
    assert {run.data.tags[PARENT] for run in nested} == {parent.info.run_id}


def test_step_moves_to_an_older_parent_that_became_visible_later(server, client, pipeline):
    wrong, run = open_task(server, task(pipeline))
    older = client.create_run(
        run.experiment_id, start_time=wrong.started - 1, tags={PIPELINE_RUN: pipeline}
    ).info.run_id
    assert open_task(server, task(pipeline))[1].run_id == run.run_id
    (parent,), (nested,) = runs(client, pipeline)
    assert parent.info.run_id == older == nested.data.tags[PARENT]
    assert client.get_run(wrong.run_id).info.lifecycle_stage == "deleted"


def test_run_that_the_training_opened_while_the_server_was_away_for_its_step_gets_its_parent(server, client, pipeline):
    experiment_id = server.experiment_id(pipeline)
    opened = open_run(
        client, experiment_id, name="train", identity=identity(pipeline, "train"), tags={}, environment={}
    )
    parent, run = open_task(server, task(pipeline))
    assert run.run_id == opened.run_id
    assert client.get_run(run.run_id).data.tags[PARENT] == parent.run_id


def test_end_of_the_pipeline_ends_the_parent_and_the_steps_that_were_killed(server, client, pipeline):
    done, killed = (open_task(server, task(pipeline, name))[1].run_id for name in ("preprocess", "train"))
    server.set_status(done, "FINISHED")
    above = end_pipeline(server, pipeline, "FAILED", {"ava.fault": "train: killed"})
    assert above is not None
    parent = above.run_id
    assert client.get_run(done).info.status == "FINISHED"
    assert client.get_run(killed).info.status == "KILLED"
    ended = client.get_run(parent)
    assert (ended.info.status, ended.data.tags["ava.fault"]) == ("FAILED", "train: killed")
    assert ended.info.end_time >= ended.info.start_time
    open_task(server, task(pipeline))  # the pipeline run is tried again
    assert client.get_run(parent).info.status == "RUNNING"


def test_end_of_a_pipeline_that_recorded_nothing_makes_nothing(server):
    assert end_pipeline(server, "never-seen", "FINISHED", {}) is None


def test_id_with_quotes_or_an_unfilled_placeholder_is_none():
    assert pipeline_run_id({"AVA_PIPELINE_RUN": " 6fd4-11 "}) == "6fd4-11"
    for given in ("", "x' or '1'='1", "{{$.pipeline_job_uuid}}", "a\nb", "x" * 300):
        assert pipeline_run_id({"AVA_PIPELINE_RUN": given}) is None
    assert pipeline_run_id({}) is None
