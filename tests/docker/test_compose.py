"""docker/compose.yaml: what it says, and the services that it describes as processes on this machine.

Images can't be had without a registry, so PostgreSQL is Debian's, MLflow is this environment's, started with the very
command and variables of the file, and moto stands in for the object store.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from tests.postgres_server import Postgres, end, free_port, require_postgres, wait_for
from tests.registry.conftest import call_register, write_inputs

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker" / "compose.yaml"
FIRST_START = ROOT / "docker" / "compose" / "first_start.py"
WAIT = ROOT / "docker" / "compose" / "wait.py"
BUCKETS = ROOT / "docker" / "compose" / "buckets.py"
SERVICES = yaml.safe_load(FILE.read_text())["services"]
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def fill(text: str, values: dict[str, str]) -> str:
    """Compose's `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""

    def value(match):
        name, kind, rest = match.groups()
        if values.get(name):
            return values[name]
        if kind == "?":
            raise KeyError(f"{name} {rest}")
        return rest or ""

    return VARIABLE.sub(value, text)


def first_start(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(FIRST_START), str(file)], capture_output=True, text=True)


def settings(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def secrets_file(tmp_path) -> Path:
    file = tmp_path / "services" / "services.env"
    assert first_start(file).returncode == 0
    return file


def test_first_start_makes_passwords_of_its_own_that_only_the_owner_can_read(secrets_file, tmp_path):
    given = settings(secrets_file)
    assert secrets_file.stat().st_mode & 0o777 == 0o600
    assert secrets_file.parent.stat().st_mode & 0o777 == 0o700
    assert all(
        re.fullmatch(r"[\w-]{20,}", given[name]) for name in ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")
    )
    assert first_start(tmp_path / "other.env").returncode == 0
    other = settings(tmp_path / "other.env")
    assert {given["POSTGRES_PASSWORD"], given["S3_SECRET_KEY"]}.isdisjoint(other.values())
    assert list(secrets_file.parent.iterdir()) == [secrets_file]


def test_second_start_leaves_the_passwords_and_says_nothing(secrets_file):
    before = secrets_file.read_bytes()
    again = first_start(secrets_file)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert secrets_file.read_bytes() == before


def test_file_that_lacks_a_password_is_refused_by_name(secrets_file):
    secrets_file.write_text(re.sub("S3_SECRET_KEY=.*", "S3_SECRET_KEY=", secrets_file.read_text()))
    result = first_start(secrets_file)
    assert result.returncode == 2 and "lacks S3_SECRET_KEY" in result.stderr


def test_two_first_starts_at_once_end_with_one_file(tmp_path):
    file = tmp_path / "services.env"
    with ThreadPoolExecutor(4) as pool:
        assert {result.returncode for result in pool.map(first_start, [file] * 4)} == {0}
    assert list(tmp_path.iterdir()) == [file] and settings(file)["POSTGRES_PASSWORD"]


def test_git_ignores_the_passwords():
    checked = subprocess.run(
        ["git", "-C", str(ROOT), "check-ignore", "-q", ".ava/services/services.env"], capture_output=True, text=True
    )
    if checked.returncode == 128:
        pytest.skip("no git checkout")
    assert checked.returncode == 0


def test_no_password_is_in_the_file_and_none_has_a_default():
    named = {match.group(1): match.group(2) for match in VARIABLE.finditer(FILE.read_text())}
    assert {name for name, kind in named.items() if kind == "?"} == {
        "POSTGRES_PASSWORD",
        "S3_ACCESS_KEY",
        "S3_SECRET_KEY",
    }
    for name, service in SERVICES.items():
        for variable, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY", variable):
                assert VARIABLE.fullmatch(value), f"{name}: {variable}"


def test_ports_are_on_loopback_and_the_database_has_none():
    assert "ports" not in SERVICES["postgres"]
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 2
    assert all(fill(port, {}).startswith("127.0.0.1:") for port in published)
    assert all(fill(port, {"BIND_ADDRESS": "10.0.0.7"}).startswith("10.0.0.7:") for port in published)


def test_every_service_that_stays_has_a_health_check_and_data_lies_in_volumes():
    staying = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}
    assert staying.keys() == {"postgres", "object-store", "mlflow"}
    assert all(service["healthcheck"]["retries"] >= 20 for service in staying.values())
    assert {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())} == set(
        yaml.safe_load(FILE.read_text())["volumes"]
    )


def test_images_have_a_version_and_a_digest_unless_they_are_built_here_and_mlflow_is_the_one_that_is_pinned():
    pinned = re.search(r"^mlflow==(\S+)", (ROOT / "requirements/compose.txt").read_text(), re.MULTILINE)[1]
    assert SERVICES["mlflow"]["image"] == SERVICES["buckets"]["image"] == f"ava-mlflow:{pinned}"
    for service in SERVICES.values():
        assert re.search(r":v?\d+\.\d+", service["image"])
        assert "build" in service or re.search(r"@sha256:[0-9a-f]{64}$", service["image"])


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs Debian's docker-compose")
def test_compose_itself_accepts_the_file(secrets_file):
    command = ["docker-compose", "--env-file", str(secrets_file), "-f", str(FILE), "config"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    resolved = yaml.safe_load(result.stdout)["services"]
    assert resolved["mlflow"]["environment"]["MLFLOW_ARTIFACTS_DESTINATION"] == "s3://mlflow"
    without = subprocess.run(["docker-compose", "-f", str(FILE), "config"], capture_output=True, text=True)
    assert without.returncode != 0 and "run make services" in without.stderr


def test_waiting_ends_when_mlflow_answers_and_says_where_or_after_the_time_given(secrets_file):
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.send_response(200 if len(self.server.asked) > 2 else 503)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Health)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    secrets_file.write_text(f"{secrets_file.read_text()}MLFLOW_PORT={server.server_address[1]}\n")
    waited = [sys.executable, str(WAIT), str(secrets_file)]
    found = subprocess.run([*waited, "30"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, f"export AVA_TRACKING_URI=http://127.0.0.1:{server.server_port}\n")
    assert server.asked == ["/health"] * 3
    server.shutdown()
    server.server_close()
    absent = subprocess.run([*waited, "0.2"], capture_output=True, text=True)
    assert absent.returncode == 1 and "no answer after" in absent.stderr and absent.stdout == ""


# --- The services as processes ---------------------------------------------------------------------------------------


class MLflow:
    """The service `mlflow` of the file, its command and its variables, with the addresses of this machine."""

    def __init__(self, given: dict[str, str], hosts: dict[str, str], folder: Path) -> None:
        self.port, self.log = free_port(), folder / "mlflow.log"
        self.address = f"http://127.0.0.1:{self.port}"
        service = SERVICES["mlflow"]
        command = [str(word) for word in service["command"]]
        # On loopback here; in its container it listens to the container's network.
        command[command.index("--host") + 1] = "127.0.0.1"
        command[command.index("--port") + 1] = str(self.port)
        self.command = [sys.executable, "-m", *command]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_", "AVA_"))}
        self.environment = {**clean, "HOME": str(folder)}
        for name, value in service["environment"].items():
            value = fill(value, given)
            for host, address in hosts.items():
                value = value.replace(host, address)
            self.environment[name] = value
        self.folder = folder

    def start(self) -> None:
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_for(lambda: urllib.request.urlopen(f"{self.address}/health", timeout=30).close(), self.process, self.log)

    def stop(self) -> None:
        end(self.process)

    def status(self, host: str) -> int:
        """The answer's status for a request with this Host."""
        request = urllib.request.Request(f"{self.address}/api/2.0/mlflow/experiments/get?experiment_id=0")
        request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def services(secrets_file, tmp_path):
    """PostgreSQL, an object store with the buckets, and MLflow: `(mlflow, restart, bucket)`."""
    binaries = require_postgres()
    moto_server = pytest.importorskip("moto.server")
    import boto3

    given = settings(secrets_file)
    # Not below pytest's folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="ava-postgres-"))
    postgres = Postgres(binaries, folder, given["POSTGRES_PASSWORD"], user="mlflow")
    store = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    hosts = {"@postgres:5432/": f"@127.0.0.1:{postgres.port}/", "http://object-store:7070": f"http://{host}:{port}"}
    mlflow = MLflow(given, hosts, tmp_path)
    keys = {name: mlflow.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    client = boto3.client(
        "s3",
        endpoint_url=mlflow.environment["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    names = SERVICES["buckets"]["command"][2:]
    started = []
    try:
        postgres.make()
        postgres.start()
        started.append(postgres)
        postgres.create("mlflow")
        for _ in range(2):  # every start of the services runs it
            made = subprocess.run(
                [sys.executable, str(BUCKETS), *names], env=mlflow.environment, capture_output=True, text=True
            )
            assert (made.returncode, made.stdout.split("\n")) == (0, [*(f"{name}: ready" for name in names), ""])
        mlflow.start()
        started.append(mlflow)

        def restart():
            mlflow.stop()
            postgres.stop()
            postgres.start()
            mlflow.start()

        yield mlflow, restart, client
    finally:
        for service in reversed(started):
            service.stop()
        store.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_registered_model_is_in_postgres_and_in_the_bucket_and_outlives_a_restart(
    services, tmp_path, tiny_model, monkeypatch
):
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    mlflow, restart, bucket = services
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_S3_ENDPOINT_URL", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)  # clients know the server only

    inputs = write_inputs(tmp_path / "outputs", tiny_model, 2.0, 2.001, "compose")
    registration = call_register(inputs, tmp_path / "registration", mlflow.address, "compose", {})
    assert registration.version == 1 and "champion" in registration.aliases

    keys = {entry["Key"] for entry in bucket.list_objects_v2(Bucket="mlflow")["Contents"]}
    assert any(key.endswith("artifacts/model/model.safetensors") for key in keys)
    assert bucket.list_objects_v2(Bucket="dvc")["KeyCount"] == 0  # DVC's remote is a bucket of its own

    assert mlflow.status("127.0.0.1:5000") == mlflow.status("mlflow:5000") == 200
    assert mlflow.status("evil.example") == 403

    restart()
    client = MlflowClient(mlflow.address, mlflow.address)
    found = client.get_model_version_by_alias("compose", "champion")
    assert found.version == "1" and client.get_run(found.run_id).data.metrics["test_bits_per_byte"] == 2.0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.address)
    fetched = Path(download_artifacts(artifact_uri="models:/compose@champion", dst_path=str(tmp_path / "fetched")))
    (weights,) = fetched.rglob("artifacts/model/model.safetensors")
    assert weights.read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    # Through the server: the store has no address that clients outside of its network could use.
    assert "/artifacts/" in mlflow.log.read_text() and "/presigned/" not in mlflow.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_steps_that_begin_at_once_share_one_parent_on_postgres_too(services):
    """SQLite takes one write after the other; PostgreSQL doesn't, and the server has several workers."""
    from ava_core.tracking.pipeline_runs import PARENT, TASK, Task, open_task
    from ava_core.tracking.rest import Server

    mlflow, _, _ = services
    experiment_id = Server(mlflow.address, {}, 60).experiment_id("race")
    for attempt in range(5):
        together = threading.Barrier(6, timeout=120)

        def begin_and_end(name, attempt=attempt, together=together):
            task = Task(pipeline_run=f"race-{attempt}", name=name, experiment="race", tags={})
            together.wait()
            open_task(Server(mlflow.address, {}, 60), task)
            together.wait()
            return open_task(Server(mlflow.address, {}, 60), task)[0].run_id

        with ThreadPoolExecutor(6) as pool:
            parents = set(pool.map(begin_and_end, [f"step {i}" for i in range(6)]))
        found = Server(mlflow.address, {}, 60).find_runs([experiment_id], "ava.pipeline_run", f"race-{attempt}")
        nested = [run for run in found if TASK in run.tags]
        assert len(parents) == 1 and len(nested) == 6 and len(found) == 7, json.dumps([run.tags for run in found])
        assert {run.tags[PARENT] for run in nested} == parents
