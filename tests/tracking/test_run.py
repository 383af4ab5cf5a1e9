"""A run on a real server, filled twice."""

from types import SimpleNamespace

import pytest

from ava_core.errors import AvaError, ConfigError
from ava_core.tracking.address import tracking_uri
from ava_core.tracking.connection import connect, experiment
from ava_core.tracking.records import Corpus, Point
from ava_core.tracking.run import find_run, load_run, open_run


@pytest.fixture
def client(mlflow_server):
    return connect(mlflow_server)


@pytest.fixture
def experiment_id(client, mlflow_server, request):
    return experiment(client, mlflow_server, request.node.name).experiment_id


def fill(run, tmp_path):
    run.log_parameters({f"p{i}": str(i) for i in range(150)})
    run.log_points(Point("loss", 1.0 / (step + 1), step) for step in range(1_200))
    run.log_corpus(Corpus("plays", "d" * 64, [{"corpus": "shakespeare"}], {"test_bytes": 5.0}))
    (tmp_path / "files").mkdir(exist_ok=True)
    (tmp_path / "files" / "a.txt").write_text("a")
    run.log_files(tmp_path / "files")


def test_filling_a_run_twice_leaves_what_filling_it_once_leaves(client, experiment_id, tmp_path):
    run = open_run(client, experiment_id, name="r", identity={"id": "1"}, tags={}, environment={})
    fill(run, tmp_path)
    again = open_run(client, experiment_id, name="r", identity={"id": "1"}, tags={"more": "x"}, environment={})
    fill(again, tmp_path)
    assert again.run_id == run.run_id
    data = client.get_run(run.run_id)
    assert len(data.data.params) == 150
    assert data.data.tags["more"] == "x"
    assert len(data.inputs.dataset_inputs) == 1
    assert [point.step for point in client.get_metric_history(run.run_id, "loss")] == list(range(1_200))


def test_other_identity_is_another_run(client, experiment_id):
    first = open_run(client, experiment_id, name="r", identity={"id": "1"}, tags={}, environment={})
    second = open_run(client, experiment_id, name="r", identity={"id": "2"}, tags={}, environment={})
    assert first.run_id != second.run_id
    assert find_run(client, experiment_id, {"id": "1"}).run_id == first.run_id
    assert find_run(client, experiment_id, {"id": "3"}) is None


def test_own_run_is_ended_once_and_a_given_one_never(client, experiment_id):
    own = open_run(client, experiment_id, name="r", identity={"id": "1"}, tags={}, environment={})
    own.close()
    ended = client.get_run(own.run_id).info.end_time
    load_run(client, own.run_id).close()
    assert client.get_run(own.run_id).info.end_time == ended
    given = client.create_run(experiment_id).info.run_id
    open_run(
        client, experiment_id, name="r", identity={"id": "2"}, tags={}, environment={"MLFLOW_RUN_ID": given}
    ).close()
    find_run(client, experiment_id, {"id": "2"}).close()
    assert client.get_run(given).info.status == "RUNNING"


def test_deleted_run_is_refused_when_given_and_passed_over_otherwise(client, experiment_id):
    run_id = client.create_run(experiment_id).info.run_id
    client.delete_run(run_id)
    assert load_run(client, run_id) is None
    with pytest.raises(AvaError, match="that run is deleted: unset it"):
        open_run(client, experiment_id, name="r", identity={"id": "1"}, tags={}, environment={"MLFLOW_RUN_ID": run_id})


def test_address_that_mlflow_does_not_know_is_wrong_input():
    with pytest.raises(ConfigError, match="ftp://nowhere: no tracking address that MLflow knows"):
        connect("ftp://nowhere")


def test_web_page_that_is_no_mlflow_server_is_one_line():
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.raises(AvaError, match=f"{address}: can't be used as tracking server") as caught:
        connect(address)
    server.shutdown()
    assert "\n" not in str(caught.value)


def test_artifacts_beside_a_database_never_lie_in_a_workspace_that_dvc_deletes(tmp_path, monkeypatch):
    """Nor does the way to them lead through it."""
    workspace = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1a2b"
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    made = []
    client = SimpleNamespace(
        get_experiment_by_name=lambda name: SimpleNamespace(lifecycle_stage="active") if made else None,
        create_experiment=lambda name, artifact_location: made.append(artifact_location),
    )
    experiment(client, tracking_uri({}), "ava")
    assert made == [(tmp_path / ".ava" / "mlflow" / "artifacts").as_uri()]
