"""A fake cluster with Ava's runtime, a fast pace, and a job to start."""

import logging

import pytest

from ava_core.config import resolve
from ava_core.launching import trainjob
from ava_core.progress import Progress


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    pytest.importorskip("kubeflow", reason="the package kubeflow is not installed")
    from ava_core.launching import cluster as module
    from ava_core.launching.runtime import manifest
    from tests.launching.fake_cluster import FakeCluster

    fake = FakeCluster(manifest("registry.example/ava-moe@sha256:" + "0" * 64))
    # KUBECONFIG is read once, when the client is imported.
    path = str(fake.kubeconfig(tmp_path / "kubeconfig"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    yield fake
    fake.close()


@pytest.fixture
def make_job():
    """A job from values of the section `kubernetes`."""

    def make(environment=None, arguments=("train",), **kubernetes):
        values = {"work": {"claim": "ava-work"}, **kubernetes}
        import yaml

        config = resolve(params_text=yaml.safe_dump({"kubernetes": values})).config
        key = "0123456789abcdef0123456789abcdef"
        settings = config.kubernetes.train_job
        return trainjob.TrainJob(
            name=trainjob.job_name(key),
            key=key,
            command=trainjob.job_command(list(arguments), nodes=settings.nodes, processes=1),
            environment=environment or {},
            kubernetes=config.kubernetes,
        )

    return make


@pytest.fixture
def run_job(cluster, caplog):
    """Run a job to its end; everything that is logged is in `caplog`."""
    from ava_core.launching.cluster import Cluster

    logger = logging.getLogger("ava_core")
    logger.propagate, level = True, logger.level
    caplog.set_level(logging.DEBUG, logger="ava_core")

    def run(job, quiet=False):
        Cluster(job.kubernetes.train_job).run(job, Progress(quiet=quiet))

    yield run
    logger.setLevel(level)
