"""What containers may and may not, and what can go wrong with them and not with processes."""

import json
import os
import threading

import pytest

from ava_core.errors import AvaError
from pipelines.docker_executor import DockerExecutor
from pipelines.executor import supervise

pytestmark = pytest.mark.slow
LOOK = """
import json, os, pathlib, sys
def can_write(folder):
    try:
        (pathlib.Path(folder) / "probe").write_text("x")
        return True
    except OSError as error:
        return error.strerror
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "capabilities": status["CapBnd"],
    "privileges": status["NoNewPrivs"],
    "writable": {folder: can_write(folder) for folder in sys.argv[1:]},
    "shared": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "home": os.environ["HOME"],
    # Known by its name: what is printed under a secret's name is hidden.
    "passed_on": [os.environ.get(name) for name in ("MLFLOW_TRACKING_TOKEN", "AWS_ACCESS_KEY_ID", "OTHER")],
}))
"""


@pytest.fixture
def start(base_image, tmp_path):
    def call(code: str, *arguments: str, environment=None, readable=()):
        executor = DockerExecutor(environment or {}, writable=[tmp_path / "out"], readable=readable)
        command = ["python3", "-c", code, *arguments]
        return executor.start(command, image=base_image, name=f"test-{os.urandom(4).hex()}", variables={})

    return call


def test_container_may_write_to_its_folders_and_tmp_and_nothing_else(start, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "play.txt").write_text("Enter the KING")
    environment = {"MLFLOW_TRACKING_TOKEN": "t", "AWS_ACCESS_KEY_ID": "k", "OTHER": "o"}
    folders = [str(tmp_path / "out"), str(corpus), "/tmp", "/", "/usr/bin"]
    task = start(LOOK, *folders, environment=environment, readable=[corpus, tmp_path / "absent"])
    assert supervise(task, log=tmp_path / "log").succeeded
    found = json.loads((tmp_path / "log").read_text())
    assert found["user"] == [os.getuid(), os.getgid()]
    assert int(found["capabilities"], 16) == 0 and found["privileges"] == "1"
    expected = [True, "Read-only file system", True, "Read-only file system", "Read-only file system"]
    assert list(found["writable"].values()) == expected
    assert found["shared"] == 2 * 2**30 and found["home"] == "/tmp"
    assert found["passed_on"] == ["t", "k", None]
    assert (tmp_path / "out" / "probe").stat().st_uid == os.getuid()


def test_container_killed_for_its_memory_is_said_to_be(start, tmp_path, monkeypatch):
    from docker.models.containers import ContainerCollection

    create = ContainerCollection.create

    def limited(self, *args, **given):
        return create(self, *args, **given, mem_limit="32m", memswap_limit="32m")

    monkeypatch.setattr(ContainerCollection, "create", limited)
    ending = supervise(start("x = bytearray(2**28); print(len(x))"), log=tmp_path / "log")
    assert not ending.succeeded and str(ending) == "SIGKILL (out of memory)"


def test_health_check_of_an_image_is_off(start):
    task = start("pass")
    assert task._container.client.api.inspect_container(task._container.id)["Config"]["Healthcheck"]["Test"] == ["NONE"]
    task.close()


def test_container_that_somebody_removes_has_failed(start, engine, tmp_path):
    task = start("import time; print('at work', flush=True); time.sleep(600)")

    def remove():
        engine.api.remove_container(task._container.id, force=True)

    threading.Timer(1.0, remove).start()
    try:  # it depends on what the engine does first whether its end can still be read
        assert str(supervise(task, log=tmp_path / "log")) == "SIGKILL (out of memory?)"
    except AvaError as error:
        assert "No such container" in str(error)


def test_container_that_is_gone_has_failed(start, engine):
    task = start("import time; time.sleep(600)")
    engine.api.remove_container(task._container.id, force=True)
    with pytest.raises(AvaError, match=r"container test-\w+: No such container"):
        task.wait()
    task.kill()
    task.close()


def test_image_that_is_not_here_is_refused_with_the_way_out(base_image):
    executor = DockerExecutor({}, writable=[], readable=[])
    assert executor.labels(base_image) == {}
    with pytest.raises(AvaError, match=r"ava-none:1: no such image here: build it with `make images`"):
        executor.labels("ava-none:1")


def test_engine_that_does_not_answer_is_refused_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(AvaError, match=r"no Docker engine answers .*--runner host"):
        DockerExecutor({}, writable=[], readable=[])


def test_program_that_is_not_in_the_image_fails_with_its_name(base_image, tmp_path):
    executor = DockerExecutor({}, writable=[], readable=[])
    task = executor.start(["ava-none"], image=base_image, name="test-none", variables={})
    assert supervise(task, log=tmp_path / "log").code == 127
    assert "ava-none" in (tmp_path / "log").read_text()
