"""The manifests that a cluster gets, for trainings on CPUs and on GPUs, and the runtime.

Renew the golden files after a wanted change, and read the difference:

    python -m tests.launching.goldens
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import yaml

from ava_core.config import resolve
from ava_core.launching import step
from ava_core.launching.runtime import manifest
from ava_core.progress import Progress
from ava_core.runtime.digests import digest_value
from ava_core.runtime.request import Request
from ava_core.runtime.work import Entry
from ava_core.steps.table import STEPS

FOLDER = Path(__file__).parent / "golden"
IMAGE = "registry.example/ava-moe@sha256:" + "0" * 64
KEY = "0123456789abcdef" * 2
CASES = {
    "cpu": {
        "seed": 1,
        "train": {
            "launcher": "trainjob",
            "processes": 2,
            "global_batch_size": 32,
            "micro_batch_size": 8,
            "precision": "bf16",
        },
        "kubernetes": {"work": {"claim": "ava-work"}, "train_job": {"nodes": 2, "cpu": 8, "memory": "16Gi"}},
    },
    "gpu": {
        "preset": "gpu/base",
        "threads": 4,
        "train": {"launcher": "trainjob", "processes": 4, "global_batch_size": 64, "micro_batch_size": 4},
        "kubernetes": {
            "work": {"claim": "ava-work", "sub_path": "team-a"},
            "labels": {"team": "a"},
            "image_pull_secrets": ["registry"],
            "secrets": [{"name": "mlflow", "variables": {"MLFLOW_TRACKING_TOKEN": "token"}}],
            "steps": {
                "train": {
                    "tolerations": [
                        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                        {"key": "spot", "value": "yes", "effect": "NoExecute", "seconds": 60},
                    ]
                }
            },
            "train_job": {
                "nodes": 4,
                "gpus_per_node": 4,
                "cpu": 32,
                "memory": "256Gi",
                "node_selector": {"gpu": "h100"},
                "timeout_minutes": 600,
            },
        },
    },
}
ENVIRONMENT = {
    "AVA_TRACKING_URI": "http://mlflow.mlflow:5000",
    "AVA_PIPELINE_RUN": "0a1b2c3d",
    "MLFLOW_RUN_ID": "f00",
    "MLFLOW_TRACKING_TOKEN": "never-in-a-manifest",
}


def build_job(values):
    """The job of a request with these parameters, and the request as it is inside."""
    config = resolve(params_text=yaml.safe_dump(values)).config
    work = Path(config.kubernetes.work.mount_path)
    request = Request(
        spec=STEPS["train"],
        config=config,
        inputs={"shards": [work / "shards"]},
        choices={},
        output=Path("/elsewhere/model"),
        work=work,
    )
    entry = Entry(work / "train" / KEY)
    inner = step.inside(request)
    # Without code, so that not every change of the training's code changes the golden files.
    with mock.patch.object(step, "code_of", lambda *_: SimpleNamespace(digest=digest_value([]))):
        return step.plan(request, inner, entry, entry.folder / "trainjob"), inner


def render():
    """Text of each golden file, by its name."""
    from ava_core.launching.cluster import Cluster
    from tests.launching.fake_cluster import FakeCluster

    files = {"runtime": manifest(IMAGE, namespace="team")}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, ENVIRONMENT, clear=True):
        cluster = FakeCluster(manifest(IMAGE))
        cluster.on_create = lambda name: (cluster.start_pods(name), cluster.end(name))
        path = str(cluster.kubeconfig(Path(folder) / "kubeconfig"))
        with mock.patch("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path):
            for name, values in CASES.items():
                job, _ = build_job(values)
                Cluster(job.kubernetes.train_job).run(job, Progress(quiet=True))
                files[name] = cluster.created.pop()
        cluster.close()
    return {f"{name}.yaml": yaml.safe_dump(values, sort_keys=True, width=120) for name, values in files.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in render().items():
        (FOLDER / name).write_text(text)
