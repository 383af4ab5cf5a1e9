"""MLflow's server: unreachable, silent, too old, no MLflow, not ours to write; and a clock that is off."""

import contextlib
import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ava_core.diagnosis import tracking_server
from ava_core.diagnosis.tracking_server import check_tracking, compare_clock


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def serving(version="3.13.0", writable=True, delay=0.0, status=200):
    """A server with the few answers that are asked for; its address, and the paths that were."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path.partition("?")[0])
            time.sleep(delay)
            if self.path == "/version":
                self.answer(version.encode(), status)
            elif "get-by-name" in self.path:
                self.answer({"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}})
            else:
                self.answer({"error_code": "RESOURCE_DOES_NOT_EXIST"}, 404)

        def do_POST(self):
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer({} if writable else {"error_code": "PERMISSION_DENIED"}, 200 if writable else 403)

        def answer(self, body, status=200):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def tracking(folder, uri):
    return {finding.what: finding for finding in check_tracking(folder, {"MLFLOW_TRACKING_URI": uri})}


def test_a_server_that_answers_and_can_be_written_to_is_fine(folder):
    (folder / "params.yaml").write_text("register: {experiment: mine}\n")
    with serving() as (uri, asked):
        found = tracking(folder, uri)
    assert found["mlflow"].line() == f"ok    mlflow: 3.13.0 at {uri}, writable"
    assert found["clock"].status == "ok" and found["clock"].value.endswith("as the MLflow server's")
    assert "/api/2.0/mlflow/experiments/set-experiment-tag" in asked


def test_a_server_that_is_not_there_fails(folder):
    found = tracking(folder, "http://127.0.0.1:9")
    assert found["mlflow"].status == "fail" and "no MLflow server answers" in found["mlflow"].value
    assert "make mlflow-ui" in found["mlflow"].way_out
    assert "no server to compare it with" in found["clock"].value


def test_a_silent_server_is_waited_for_no_longer_than_it_may(folder, monkeypatch):
    monkeypatch.setattr(tracking_server, "SECONDS", 0.3)
    with serving(delay=2.0) as (uri, _):
        began = time.monotonic()
        found = tracking(folder, uri)
        assert time.monotonic() - began < 1.5
    assert found["mlflow"].status == "fail" and "no MLflow server answers" in found["mlflow"].value


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({"version": "2.20.1"}, "is MLflow 2.20.1"),
        ({"version": "<html>"}, "no MLflow server answers there, but something else"),
        ({"writable": False}, "doesn't let us do that"),
        ({"status": 500}, "HTTP 500"),
    ],
)
def test_a_server_that_cannot_be_used_fails(folder, server, told):
    with serving(**server) as (uri, _):
        found = tracking(folder, uri)
    assert found["mlflow"].status == "fail" and told in found["mlflow"].line()
    assert found["mlflow"].way_out


def test_an_address_that_is_none_fails_and_its_password_is_not_shown(folder):
    found = tracking(folder, "htp://me:secret@host")
    assert found["mlflow"].status == "fail" and "secret" not in found["mlflow"].line()
    assert found["mlflow"].way_out == "give http://HOST:PORT or sqlite:///FILE"


def test_without_a_server_the_database_of_this_folder_is_named(folder):
    found = tracking(folder, "")
    assert found["mlflow"].status == "ok" and "made by the first run" in found["mlflow"].value
    assert list(folder.iterdir()) == []
    blocked = tracking(folder, "sqlite:////proc/mlflow.db")
    assert blocked["mlflow"].status == "fail"


def test_a_database_without_a_server_is_not_asked(folder):
    found = tracking(folder, "postgresql://me:secret@host/db")
    assert found["mlflow"].status == "warn" and "secret" not in found["mlflow"].line()


@pytest.mark.parametrize(("apart", "status"), [(0, "ok"), (59, "ok"), (-300, "fail"), (300, "fail")])
def test_a_clock_that_is_off_fails(apart, status):
    finding = compare_clock(formatdate(1_700_000_000, usegmt=True), 1_700_000_000 + apart)
    assert finding.status == status
    assert (status == "ok") or f"{abs(apart)} s {'ahead of' if apart > 0 else 'behind'}" in finding.value


def test_a_date_that_is_none_compares_nothing():
    assert compare_clock("yesterday", 0.0).status == "ok"
