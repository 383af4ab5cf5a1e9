"""What goes over the wire: credentials as MLflow's client sends them, bounded waits, and what the server then has."""

import base64
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ava_core.errors import AvaError
from ava_core.tracking.connection import connect
from ava_core.tracking.records import Point
from ava_core.tracking.rest import RefusedError, Server

RUN = {"info": {"run_id": "r", "experiment_id": "1", "status": "RUNNING", "start_time": 5, "lifecycle_stage": "active"}}


@pytest.fixture
def listener():
    """A server that keeps the headers of each request; `answer` is its status and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.headers.append(self.headers)
            status, body = self.server.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.headers, server.answer = [], (200, json.dumps({"run": RUN}).encode())
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without anyone's credentials; a .netrc that must not come before what the variables say."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login netrc password netrc\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("environment", "header", "value"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pw"}, "Authorization", basic("me", "pw")),
        ({"MLFLOW_TRACKING_TOKEN": "abc"}, "Authorization", "Bearer abc"),
        ({"MLFLOW_WORKSPACE": "team"}, "X-MLFLOW-WORKSPACE", "team"),
    ],
    ids=["password", "token", "workspace"],
)
def test_credentials_of_mlflows_variables_are_sent(listener, environment, header, value):
    assert Server(listener.address, environment, 5).active_run("r").started == 5
    assert listener.headers[0][header] == value


@pytest.mark.slow
def test_credentials_file_and_plugins_of_mlflow_are_asked(listener, home):
    (home / ".mlflow").mkdir()
    (home / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = file\nmlflow_tracking_password = pw\n"
    )
    Server(listener.address, {}, 30).active_run("r")
    assert listener.headers[0]["Authorization"] == basic("file", "pw")


def test_answer_that_is_no_success_has_mlflows_code(listener):
    listener.answer = (400, json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}).encode())
    with pytest.raises(RefusedError, match="error code 400: no") as caught:
        Server(listener.address, {}, 5).active_run("r")
    assert caught.value.code == "INVALID_PARAMETER_VALUE"
    listener.answer = (502, b"<html>bad gateway")
    with pytest.raises(RefusedError, match="error code 502") as caught:
        Server(listener.address, {}, 5).active_run("r")
    assert caught.value.code == ""


def test_server_that_accepts_and_never_answers_costs_no_more_than_was_allowed():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = Server(f"http://127.0.0.1:{silent.getsockname()[1]}", {}, 0.5)
        started = time.monotonic()
        for _ in range(3):
            with pytest.raises(OSError):
                server.active_run("r")
        assert time.monotonic() - started < 100


def test_run_is_filled_and_known_parameters_are_left_alone(mlflow_server, request):
    client, server = connect(mlflow_server), Server(mlflow_server, {}, 60)
    experiment_id = server.experiment_id(request.node.name)
    assert experiment_id == server.experiment_id(request.node.name) and experiment_id in server.experiment_ids()
    run = server.create_run(experiment_id, "a step", {"kind": "x"})
    server.log(run, parameters={f"p{i}": "1" for i in range(150)})
    again = server.active_run(run.run_id)
    server.log(again, [Point("loss", 0.5, 7)], {"more": "y"}, {"p0": "2", "q": "3"})
    server.set_status(run.run_id, "FINISHED")
    seen = client.get_run(run.run_id)
    assert len(seen.data.params) == 151 and seen.data.params["p0"] == "1"
    assert (seen.info.run_name, seen.info.status) == ("a step", "FINISHED")
    assert {"kind": "x", "more": "y"}.items() <= seen.data.tags.items()
    assert [(point.step, point.value) for point in client.get_metric_history(run.run_id, "loss")] == [(7, 0.5)]
    server.delete_run(run.run_id)
    with pytest.raises(AvaError, match="that run is deleted"):
        server.active_run(run.run_id)
    with pytest.raises(AvaError, match="no such run"):
        server.active_run("0" * 32)
