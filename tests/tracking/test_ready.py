"""The look at the server before a pipeline begins."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ava_core.errors import AvaError
from ava_core.tracking.faults import DeletedExperimentError
from ava_core.tracking.ready import main, require_ready
from tests.registry.proxy import Proxy


@pytest.fixture
def deleted(mlflow_server, request, monkeypatch):
    """The name of a deleted experiment on the server that the environment names."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    client.delete_experiment(client.create_experiment(request.node.name))
    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    return request.node.name


def test_deleted_experiment_is_a_line_and_exit_code_1(deleted, mlflow_server, tmp_path, capsys):
    params = tmp_path / "params.yaml"
    params.write_text(f"register: {{experiment: {deleted}}}\n")
    for given in (["--experiment", deleted, "--model", "any"], ["--params", str(params)]):
        assert main(given) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"register.experiment = {deleted}: is deleted on {mlflow_server}: name ")
        assert err.count("\n") == 1 and "`mlflow experiments restore -x " in err


def test_experiment_that_nobody_has_made_is_made_and_a_model_is_not(mlflow_server, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    for _ in range(2):
        assert main(["--experiment", "nobody-made-it", "--model", "nobody's"]) == 0
    client = MlflowClient(mlflow_server)
    assert client.get_experiment_by_name("nobody-made-it") is not None
    with pytest.raises(MlflowException):
        client.get_registered_model("nobody's")


PERMISSIONS = {
    "nobody we know": (lambda method, path: 401, "doesn't know us: check MLFLOW_TRACKING_USERNAME"),
    "may read the experiment": (
        lambda method, path: 403 if path.endswith("set-experiment-tag") else None,
        "doesn't let us do that: ask for EDIT on the experiment",
    ),
    "may read the model": (
        lambda method, path: 403 if path.endswith("registered-models/set-tag") else None,
        "doesn't let us do that: ask for EDIT",
    ),
    "may not see the registry": (
        lambda method, path: 403 if "registered-models/get" in path else None,
        "doesn't let us do that: ask for EDIT",
    ),
    "out of order": (lambda method, path: 500, "answers with HTTP 500: look into its log"),
}


@pytest.mark.parametrize("who", PERMISSIONS)
def test_server_that_would_refuse_at_the_end_is_told_at_the_beginning(mlflow_server, who):
    """As `mlflow server --app-name basic-auth` answers, where `/health` is open to everyone."""
    from mlflow import MlflowClient

    name = "ready " + who
    MlflowClient(mlflow_server).create_registered_model(name)
    refuses, says = PERMISSIONS[who]
    before = lambda method, path: None if path == "/version" and who != "out of order" else refuses(method, path)  # noqa: E731
    with Proxy(mlflow_server, before=before) as proxy, pytest.raises(AvaError, match=says) as told:
        require_ready(name, name, {"MLFLOW_TRACKING_URI": proxy.address})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"2.22.1", "is MLflow 2.22.1: Ava needs a server of MLflow 3 or later"),
        (b"<html>Welcome to nginx</html>", "no MLflow server answers there, but something else"),
    ],
)
def test_server_of_another_kind_or_age_is_told_at_the_beginning(body, says):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(AvaError, match=says):
            require_ready("any", "any", {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_address[1]}"})
        server.shutdown()


def test_database_that_can_not_be_opened_is_told_at_the_beginning():
    with pytest.raises(AvaError, match=r"postgresql://\*\*\*@127\.0\.0\.1:9/none"):
        require_ready("any", "any", {"MLFLOW_TRACKING_URI": "postgresql://me:hunter2@127.0.0.1:9/none"})


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///nowhere.db", ""])
def test_server_that_can_not_be_asked_passes(uri):
    require_ready("any", "any", {"AVA_TRACKING_URI": uri})


def test_wrong_parameters_are_exit_code_2(tmp_path, capsys):
    assert main(["--params", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_experiment_found_deleted_has_a_type_of_its_own(deleted, mlflow_server):
    with pytest.raises(DeletedExperimentError):
        require_ready(deleted, "any", {"MLFLOW_TRACKING_URI": mlflow_server})
