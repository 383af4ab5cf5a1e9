"""Submitting, with the real KFP client against a small server that keeps what it is told."""

import json
import re
import threading
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from ava_core.errors import AvaError, ConfigError
from pipelines import submit as submitting

STATES = ["PENDING", "RUNNING"]


class FakeServer(ThreadingHTTPServer):
    """The endpoints of /apis/v2beta1 that a submission uses."""

    def __init__(self, token: str | None = None, end: str = "SUCCEEDED", broken: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.token, self.end, self.broken = token, end, broken
        self.pipelines, self.versions, self.experiments, self.runs = [], [], [], []
        self.polls = 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FakeHandler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve()

    def do_POST(self):
        self._serve()

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._answer(401, {"message": "no"})
        route = parts.path.removeprefix("/apis/v2beta1/")
        if self.server.broken and route == "runs":
            return self._answer(self.server.broken, {"message": "the database\nis full"})
        answer = self._route(self.command, route, query, body)
        return self._answer(200, answer) if answer is not None else self._answer(404, {"message": "no such path"})

    def _route(self, method, route, query, body):
        server = self.server
        if route == "healthz":
            return {"multi_user": False}
        if route == "pipelines/upload":
            server.pipelines.append({"pipeline_id": "p1", "display_name": query["name"], "ir": self._uploaded(body)})
            return server.pipelines[-1]
        if route == "pipelines/upload_version":
            version = {"pipeline_id": query["pipelineid"], "display_name": query["name"]}
            version |= {"pipeline_version_id": f"v{len(server.versions) + 1}"}
            server.versions.append({**version, "ir": self._uploaded(body)})
            return version
        if route == "pipelines":
            return {"pipelines": self._filtered(server.pipelines, query)}
        if re.fullmatch(r"pipelines/[^/]+/versions", route):
            return {"pipeline_versions": self._filtered(server.versions, query)}
        if route == "experiments" and method == "GET":
            return {"experiments": self._filtered(server.experiments, query)}
        if route == "experiments":
            server.experiments.append({"experiment_id": "e1", **json.loads(body)})
            return server.experiments[-1]
        if route == "runs":
            server.runs.append({"run_id": f"r{len(server.runs) + 1}", **json.loads(body)})
            return server.runs[-1]
        if route.startswith("runs/"):
            server.polls += 1
            return {"run_id": "r1", "state": [*STATES, server.end][min(server.polls - 1, 2)]}
        return None

    def _filtered(self, items, query):
        (predicate,) = json.loads(query["filter"])["predicates"]
        assert predicate["key"] == "display_name"
        return [
            {name: value for name, value in item.items() if name != "ir"}
            for item in items
            if item["display_name"] == predicate["stringValue"]
        ]

    def _uploaded(self, body) -> str:
        head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
        (part,) = message_from_bytes(head + body).get_payload()
        assert part.get_param("name", header="content-disposition") == "uploadfile"
        return part.get_payload(decode=True).decode()

    def _answer(self, code, value):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def serve():
    servers = []

    def start(**options) -> FakeServer:
        servers.append(FakeServer(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def submit(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("train:\n  steps: 70\n")

    def call(server_or_host, *extra: str) -> int:
        host = server_or_host if isinstance(server_or_host, str) else server_or_host.address
        return submitting.main(["--params", str(params), "--host", host, "--data-uri", "s3://bucket/raw", *extra])

    return call


def test_pipeline_version_experiment_and_run_are_made(serve, submit, capsys):
    server = serve()
    assert submit(server, "--tracking-uri", "http://mlflow:5000", "--image", "registry.invalid/ava@sha256:1") == 0
    (version,), (run,), (experiment,) = server.versions, server.runs, server.experiments
    assert experiment["display_name"] == "ava" and run["experiment_id"] == "e1"
    assert run["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v1"}
    parameters = run["runtime_config"]["parameters"]
    assert parameters["data_uri"] == "s3://bucket/raw" and parameters["tracking_uri"] == "http://mlflow:5000"
    assert yaml.safe_load(parameters["params_yaml"])["train"]["steps"] == 70
    assert re.fullmatch(r"[0-9a-f]{40}|", parameters["git_commit"])
    assert re.fullmatch(r"ava (\w+) [0-9a-f]{12}", run["display_name"])
    assert "registry.invalid/ava@sha256:1" in version["ir"]
    output = capsys.readouterr()
    assert output.out == f"run r1  {run['display_name']}\npage {server.address}/#/runs/details/r1\n"
    assert output.err == ""


def test_same_thing_twice_makes_a_second_run_and_no_second_version(serve, submit):
    server = serve()
    submit(server)
    submit(server)
    assert len(server.runs) == 2 and server.runs[0]["display_name"] == server.runs[1]["display_name"]
    assert len(server.pipelines) == len(server.versions) == len(server.experiments) == 1


def test_another_ir_makes_a_new_version_and_another_configuration_does_not(serve, submit):
    server = serve()
    submit(server)
    submit(server, "--set", "train.learning_rate=0.1")
    assert len(server.versions) == 1 and server.runs[0]["display_name"] != server.runs[1]["display_name"]
    submit(server, "--set", "quantize.schemes=[int8,int4]")
    assert len(server.versions) == 2 and len(server.pipelines) == 1


@pytest.mark.parametrize(("end", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_wait_ends_with_the_run_and_says_how(serve, submit, capsys, monkeypatch, end, code):
    monkeypatch.setattr(submitting, "POLL_SECONDS", 0.01)
    assert submit(serve(end=end), "--wait") == code
    assert f"run r1 {end}" in capsys.readouterr().out


def test_token_of_the_file_is_sent(serve, submit, tmp_path, capsys):
    (tmp_path / "token").write_text("s3cret\n")
    server = serve(token="s3cret")
    assert submit(server, "--token-file", str(tmp_path / "token")) == 0
    assert "s3cret" not in "".join(capsys.readouterr())


def test_server_that_refuses_us_is_named_with_the_way_out(serve, submit):
    server = serve(token="s3cret")
    with pytest.raises(AvaError, match=r"refuses us \(401\): give a valid token with --token-file"):
        submit(server)
    assert server.runs == server.pipelines == []


def test_nobody_at_the_address_is_one_line(submit):
    with pytest.raises(AvaError, match=r"^http://127\.0\.0\.1:9: no Kubeflow Pipelines server answers"):
        submit("http://127.0.0.1:9")


def test_another_kind_of_server_is_one_line(serve, submit):
    server = serve()
    with pytest.raises(AvaError, match=r"has no Kubeflow Pipelines API \(404\)"):
        submit(f"{server.address}/elsewhere")


def test_error_in_the_server_is_one_line_with_its_message(serve, submit):
    with pytest.raises(AvaError, match=r": 500 .*: the database is full$"):
        submit(serve(broken=500))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "--host: missing"),
        (["--host", "kubeflow"], "--host kubeflow: must be http"),
        (["--host", "http://h"], "--data-uri: missing"),
        (["--host", "http://h", "--data-uri", "data/raw"], "--data-uri data/raw: must be an address"),
        (["--host", "http://h", "--data-uri", "s3://b", "--set", "preset=auto"], "preset: auto"),
        (["--host", "http://h", "--data-uri", "s3://b", "--set", "train.steps=-1"], "train.steps = -1: must be > 0"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_sent(tmp_path, flags, line):
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(ConfigError) as caught:
        submitting.main(["--params", str(tmp_path / "params.yaml"), *flags])
    assert any(line in fault for fault in caught.value.faults)
