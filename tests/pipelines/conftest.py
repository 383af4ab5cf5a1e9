"""The compiled pipeline, and a fake `ava` to run it with, as processes and as containers."""

import io
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest

from pipelines.compile import compile_pipeline
from pipelines.docker_executor import LABEL, DockerExecutor
from pipelines.graph import Graph
from pipelines.host_executor import HostExecutor
from pipelines.runner import LocalRunner

FAKE = Path(__file__).with_name("fake_ava.py")
BASE = "ava-base:bookworm"
SCHEMES = ["int8", "int4"]
EXECUTORS = [pytest.param("host"), pytest.param("docker", marks=pytest.mark.slow)]


@pytest.fixture(scope="session")
def ir() -> str:
    return compile_pipeline(SCHEMES)


@pytest.fixture(scope="session")
def engine():
    """A client of the Docker engine."""
    import docker

    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def base_image(engine) -> str:
    """The Debian that our images are built on, which has a python3."""
    import docker

    try:
        engine.images.get(BASE)
    except docker.errors.ImageNotFound:
        from pipelines.images import base

        base.ensure()
    return BASE


@pytest.fixture(scope="session")
def fake_image(engine, base_image):
    """An image whose `ava` is tests/pipelines/fake_ava.py."""
    text = f"#!/usr/bin/python3 -SE\n{FAKE.read_text()}".encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        file = tarfile.TarInfo("ava")
        file.size, file.mode = len(text), 0o755
        tar.addfile(file, io.BytesIO(text))
    container = engine.containers.create(base_image, ["true"])
    try:
        container.put_archive("/usr/local/bin", archive.getvalue())
        image = container.commit("ava-fake", f"test-{os.getpid()}")
    finally:
        container.remove()
    yield image.tags[0]
    engine.images.remove(image.id, force=True)


class FakePipeline:
    """A LocalRunner whose `ava` is tests/pipelines/fake_ava.py."""

    def __init__(self, folder: Path, ir: str, executor, variables: dict[str, str]) -> None:
        self.folder, self.graph, self.executor, self.lines = folder, Graph(ir), executor, []
        self.variables = {**variables, "FAKE_JOURNAL": str(folder / "journal.jsonl")}

    def runner(self, variables=None, **options) -> LocalRunner:
        return LocalRunner(
            self.graph,
            self.folder / "runs",
            self.executor,
            variables=variables or (lambda task: self.variables),
            show=self.lines.append,
            **options,
        )

    def run(self, fault: str = "", variables=None, timeouts=None, forced=(), **arguments):
        self.variables["FAKE_FAULT"] = fault
        runner = self.runner(variables, timeouts=timeouts, forced=forced)
        return runner.run({"params_yaml": "preset: cpu/tiny\n", "data_uri": str(self.folder), **arguments})

    @property
    def journal(self) -> list[dict]:
        """What was called, in order."""
        path = self.folder / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def called(self) -> list[str]:
        """The components that were called, in order."""
        return [entry["component"] for entry in self.journal]


@pytest.fixture
def host(tmp_path, ir) -> FakePipeline:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "ava").write_text(f"#!{sys.executable} -SE\n{FAKE.read_text()}")
    (bin_folder / "ava").chmod(0o755)
    variables = {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    return FakePipeline(tmp_path, ir, HostExecutor(os.environ), variables)


@pytest.fixture
def docker(tmp_path, fake_image) -> FakePipeline:
    executor = DockerExecutor(os.environ, writable=[tmp_path], readable=[])
    return FakePipeline(tmp_path, compile_pipeline(SCHEMES, fake_image), executor, {})


@pytest.fixture
def fake(request) -> FakePipeline:
    """The fake pipeline on the executor that the test names: parametrise with EXECUTORS, indirectly."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def containers(engine):
    """Names of the containers that the runs of a fake pipeline have left behind."""

    def left(fake: FakePipeline) -> list[str]:
        present = engine.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
        runs = [run.name for run in (fake.folder / "runs").iterdir()]
        return [it.name for it in present if any(it.labels[LABEL].startswith(run) for run in runs)]

    return left
