"""`ava train` with `launcher: trainjob`: its command is really run, by Open MPI, in place of the cluster's kubelet."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ava_core.config import resolve
from ava_core.config.hardware import usable_cores
from ava_core.errors import AvaError, ConfigError
from ava_core.progress import Progress
from ava_core.runtime import manifest
from ava_core.runtime.request import Request
from ava_core.runtime.step import run_step
from ava_core.runtime.work import timings_path
from ava_core.steps.table import STEPS

pytest.importorskip("kubeflow", reason="the package kubeflow is not installed")
from ava_core.launching.step import inside, run_step_on_cluster

needs_mpi = pytest.mark.skipif(
    shutil.which("mpirun") is None or usable_cores() < 2, reason="needs Open MPI and two cores"
)


@pytest.fixture
def ask(tmp_path, make_params, tiny_shards):
    """A request of `ava train`; keywords are values of `kubernetes.train_job`."""

    def make(output="model", force=False, work="volume/work", claim="ava-work", train=None, shards=tiny_shards, **job):
        params = make_params(
            threads=2,
            train={"launcher": "trainjob", "processes": 2, "micro_batch_size": 1, **(train or {})},
            kubernetes={
                "work": {"claim": claim, "mount_path": str(tmp_path / "volume")},
                "train_job": {"nodes": 1, **job},
            },
        )
        return Request(
            spec=STEPS["train"],
            config=resolve(params=params).config,
            inputs={"shards": [shards]},
            choices={},
            output=tmp_path / output,
            work=tmp_path / work,
            force=force,
            progress=Progress(quiet=True),
        )

    return make


@pytest.fixture
def kubelet(cluster, tmp_path):
    """Runs the launcher's container for real; `kubelet.processes` are what it has started."""
    return Kubelet(cluster, tmp_path)


FOREIGN = ("AVA_", "MLFLOW_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "CROSS_")


class Kubelet:
    """One machine, which is the launcher."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder, self.processes = cluster, folder, []
        (folder / "ssh").mkdir()
        (folder / "ssh" / "id_rsa.pub").write_text("ecdsa-sha2-nistp521 AAAA\n")
        (folder / "hostfile").write_text("127.0.0.1 slots=1\n")
        cluster.on_create = self.start

    def start(self, name):
        trainer = self.cluster.jobs[name]["spec"]["trainer"]
        self.cluster.start_pods(name)
        python, *module = trainer["command"][:3]
        mounts = ["--hostfile", str(self.folder / "hostfile"), "--ssh", str(self.folder / "ssh")]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {
            # A pod's own: DeepSpeed leaves RANK and others in a process that has trained.
            **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
            **{variable["name"]: variable["value"] for variable in trainer.get("env", [])},
            **{"PATH": path, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
            "GLOO_SOCKET_IFNAME": "lo",
        }
        process = subprocess.Popen(
            [python, *module, *mounts, *trainer["command"][3:]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        for line in process.stdout:
            if name in self.cluster.jobs:
                self.cluster.log(name, line.rstrip("\n"))
        code = process.wait()
        if name in self.cluster.jobs:
            codes = {f"{name}-launcher-0-0": (code, "Error")} if code else {}
            self.cluster.end(name, "Failed" if code else "Complete", "FailedJobs" if code else "Done", "", codes)


@needs_mpi
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_in_a_trainjob_leaves_the_bytes_of_a_local_one(ask, kubelet, cluster, tmp_path):
    request = ask()
    run_step_on_cluster(request)
    there = manifest.verify(request.output)
    assert json.loads(timings_path(request.output).read_text())["wall_seconds"] > 0
    assert cluster.jobs == {}
    assert not list((tmp_path / "volume" / "work" / "train").glob("*/trainjob"))

    run_step_on_cluster(ask(output="again"))  # finished work starts no second job
    assert len(cluster.created) == 1
    assert manifest.verify(tmp_path / "again").digest == there.digest

    local = ask(output="local", work="elsewhere")
    values = {"launcher": "local"}
    config = local.config.model_copy(update={"train": local.config.train.model_copy(update=values)})
    params = tmp_path / "local.yaml"
    params.write_text(json.dumps(config.model_dump(mode="json", by_alias=True, exclude={"preset"})))
    flags = ["--params", params, "--shards", local.inputs["shards"][0], "--output", local.output]
    command = [sys.executable, "-m", "ava_core.cli.main", "train", *flags, "--work", local.work]
    subprocess.run(list(map(str, command)), check=True, timeout=400)
    here = manifest.verify(local.output)
    assert (here.key, here.digest) == (there.key, there.digest)


@needs_mpi
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_step_that_is_killed_finds_its_job_again_and_one_that_is_ended_removes_it(ask, kubelet, cluster, tmp_path):
    request = ask(train={"steps": 400, "checkpoint_every": 1})
    params = tmp_path / "params.yaml"
    command = [sys.executable, "-m", "ava_core.cli.main", "train", "--params", params, "--quiet"]
    command += ["--shards", request.inputs["shards"][0], "--output", request.output, "--work", request.work]
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig")}

    def start():
        return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)

    killed = start()
    await_(lambda: list((tmp_path / "volume/work/train").glob("*/state/checkpoints/*")), killed)
    killed.kill()
    killed.wait()
    assert len(cluster.jobs) == 1
    assert kubelet.processes[0].poll() is None

    follows = ("GET", f"/api/v1/namespaces/team/pods/{next(iter(cluster.jobs))}-launcher-0-0/log")
    before = cluster.requests.count(follows)  # what the killed one asked for
    ended = start()
    await_(lambda: cluster.requests.count(follows) > before, ended)
    ended.send_signal(signal.SIGTERM)
    errors = ended.communicate(timeout=60)[1]
    assert ended.returncode == 143, errors
    assert "is running already: following it" in errors
    assert len(cluster.created) == 1
    assert len(cluster.deleted) == 1
    kubelet.processes[0].terminate()
    kubelet.processes[0].wait(timeout=60)


@needs_mpi
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_failure_of_the_training_is_the_steps(ask, kubelet, cluster):
    rates = {"learning_rate": 1000, "embedding_learning_rate_ratio": 1e6, "gradient_clip": 0}
    with pytest.raises(AvaError, match=r"exit code 1; its log ends: step \d+: .*train\.learning_rate"):
        run_step_on_cluster(ask(train={**rates, "optimizer": "adamw", "precision": "fp32"}))
    assert cluster.jobs == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"claim": None}, r"kubernetes\.work\.claim = null: name the PersistentVolumeClaim"),
        ({"work": "elsewhere"}, r"--work .*elsewhere: must be inside kubernetes\.work\.mount_path"),
        ({"nodes": 3}, r"train\.global_batch_size = 4: must be a multiple of .* = 1 x 2 x 3"),
        ({"gpus_per_node": 1}, r"gpus_per_node = 1: must be train\.processes = 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(ask, cluster, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_step_on_cluster(ask(**changes))
    assert cluster.requests == []


def test_job_that_leaves_no_output_is_a_failure(ask, cluster):
    cluster.on_create = lambda name: (cluster.start_pods(name), cluster.end(name))
    with pytest.raises(AvaError, match=r"left no finished output .*must see the work folder under the same path"):
        run_step_on_cluster(ask())


def test_inputs_that_are_not_on_the_volume_are_copied_there_once(ask, cluster, tmp_path, tiny_shards):
    seen = []

    def controller(name):
        command = cluster.jobs[name]["spec"]["trainer"]["command"]
        seen.append(Path(command[command.index("--shards") + 1]))
        cluster.start_pods(name)
        cluster.end(name, "Failed")

    cluster.on_create = controller
    for _ in range(2):
        with pytest.raises(AvaError, match="failed"):
            run_step_on_cluster(ask())
    assert seen[0] == seen[1]
    assert seen[0].is_relative_to(tmp_path / "volume")
    assert manifest.verify(seen[0]).digest == manifest.verify(tiny_shards).digest
    shutil.copytree(tiny_shards, tmp_path / "volume" / "shards")
    with pytest.raises(AvaError, match="failed"):
        run_step_on_cluster(ask(shards=tmp_path / "volume" / "shards"))
    assert seen[2] == tmp_path / "volume" / "shards"


def test_output_of_something_else_is_not_replaced_without_force(ask, cluster, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_text("mine")
    with pytest.raises(ConfigError, match="pass --force to replace it"):
        run_step_on_cluster(ask())
    assert cluster.requests == []


def test_forced_job_computes_anew_and_replaces_the_output(ask, cluster, tmp_path, monkeypatch):
    """The job of this test does what `ava train --force` would: it makes the output that its key stands for."""
    request = ask(force=True)
    request.output.mkdir()
    (request.output / "file").write_text("old")

    def controller(name):
        assert cluster.jobs[name]["spec"]["trainer"]["command"][-1] == "--force"
        inner = inside(request)
        run_step(_elsewhere(inner, tmp_path), _fake_training)
        cluster.start_pods(name)
        cluster.end(name)

    cluster.on_create = controller
    run_step_on_cluster(request)
    assert (request.output / "weights").read_text() == "new"
    assert len(cluster.created) == 1


def _elsewhere(request, tmp_path):
    from dataclasses import replace

    return replace(request, output=tmp_path / "volume" / "inner")


def _fake_training(run):
    (run.output / "weights").write_text("new")
    run.metrics.update(dict.fromkeys(STEPS["train"].metrics, 1.0))
    run.timings.update(dict.fromkeys(STEPS["train"].timings, 1.0))


def await_(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
