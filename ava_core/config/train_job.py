"""The section `kubernetes.train_job`: the machines of a training with `train.launcher: trainjob`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ava_core.config.limits import MAX_THREADS
from ava_core.config.section import NonNegative, ObjectName, Positive, Section

Memory = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}[MGT]i?$")]


class TrainJobConfig(Section):
    """A `TrainJob` of Kubeflow Trainer; `train.processes` processes run on each of its machines.

    What its pods share with those of the pipeline is read from there: `kubernetes.work` (the volume, which must be
    ReadWriteMany), `kubernetes.secrets`, and of `kubernetes.steps.train` the kind of GPU and the tolerations.
    The number of machines changes results, for it changes the number of ranks; nothing else here does but `cpu`, where
    it stands for the number of threads.
    """

    nodes: Annotated[int, Field(gt=0, le=65_536)] = 2
    """Machines (pods) that train together."""
    gpus_per_node: NonNegative = 0
    """GPUs of each machine: as many as it has processes, or none."""
    cpu: Annotated[int, Field(gt=0, le=MAX_THREADS)] = 4
    """Cores of each machine; also its number of threads, if the top-level `threads` is 0."""
    memory: Memory = "8Gi"
    """Memory of each machine, in bytes with a decimal (M, G, T) or binary (Mi, Gi, Ti) unit."""
    node_selector: dict[str, str] = {}
    """Labels that the nodes of the cluster must have."""
    runtime: ObjectName = "deepspeed-distributed"
    """TrainingRuntime of the namespace, or ClusterTrainingRuntime; its image is what trains."""
    namespace: ObjectName | None = None
    """Where the job runs; null: the namespace of the pod that starts it, or of the kubeconfig's context."""
    timeout_minutes: Positive = 1440
    """From its start, waiting for machines included, until the job is stopped and counts as failed."""
