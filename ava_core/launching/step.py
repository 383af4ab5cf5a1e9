"""A step that trains with `launcher: trainjob`: the step here, its processes on a cluster.

Inside the TrainJob runs the step itself, under its whole contract, in the same work folder, which lies on a volume that
all machines share. Its key is that of the same training on one machine with as many ranks. What remains to do here is
to start it, to watch it, and to put the output that it left in the work folder where it was asked for.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import yaml

from ava_core.config.hosts import require_divisible_batches
from ava_core.config.schema import AvaConfig
from ava_core.errors import AvaError, ConfigError
from ava_core.files import remove
from ava_core.launching.trainjob import ENVIRONMENT, SECRETS, TrainJob, job_command, job_environment, job_name
from ava_core.runtime.atomic_copy import copy_atomically
from ava_core.runtime.code import code_of
from ava_core.runtime.request import Request, StepRun
from ava_core.runtime.step import find_entry, run_step
from ava_core.runtime.work import Entry
from ava_core.steps.table import STEPS

log = logging.getLogger(__name__)


def run_step_on_cluster(request: Request) -> None:
    """`run_step` for a training whose ranks run in a TrainJob; what is finished already starts none.

    Raises:
        ConfigError: the machines don't fit the training, or there is no cluster, volume or runtime.
        AvaError: the job failed, took too long or was deleted.
    """
    inner = inside(request)
    entry, finished = find_entry(inner)
    if not finished:
        folder = entry.folder / "trainjob"
        job = plan(request, inner, entry, folder)
        from ava_core.launching.cluster import Cluster

        Cluster(request.config.kubernetes.train_job).run(job, request.progress)
        shutil.rmtree(folder, ignore_errors=True)
        if request.force:  # that has been done, by the job
            remove(request.output)
            inner = replace(inner, force=False)
    run_step(inner, _left_nothing)


def inside(request: Request) -> Request:
    """The request as it is inside the job, which alone decides on the key.

    Raises:
        ConfigError: batches or GPUs can't be divided among the ranks, or the work folder isn't on the shared volume.
    """
    config, kubernetes = request.config, request.config.kubernetes
    training, section = request.training, request.spec.training
    settings, processes = kubernetes.train_job, training.processes
    require_divisible_batches(training, settings.nodes)
    if settings.gpus_per_node not in (0, processes):
        raise ConfigError(
            f"kubernetes.train_job.gpus_per_node = {settings.gpus_per_node}: must be {section}.processes = {processes},"
            " one GPU for each process of a machine, or 0 to train on CPUs"
        )
    if kubernetes.work.claim is None:
        raise ConfigError(
            "kubernetes.work.claim = null: name the PersistentVolumeClaim (ReadWriteMany) that the machines of"
            f" {section}.launcher = trainjob share"
        )
    if not request.work.is_relative_to(kubernetes.work.mount_path):
        raise ConfigError(
            f"--work {request.work}: must be inside kubernetes.work.mount_path = {kubernetes.work.mount_path}, the"
            " volume that the machines of the TrainJob share"
        )
    alone = training.model_copy(update={"launcher": "local", "processes": settings.nodes * processes})
    threads = config.threads or settings.cpu
    return replace(request, config=config.model_copy(update={section: alone, "threads": threads}))


def plan(request: Request, inner: Request, entry: Entry, folder: Path) -> TrainJob:
    """The job for a request.

    Args:
        request: as it was asked for.
        inner: as it is inside the job.
        entry: its entry in the work folder.
        folder: for copies of what isn't on the shared volume, and for the job's own output and logs.
    """
    kubernetes = request.config.kubernetes
    key = entry.folder.name
    arguments = [*request.spec.words, "--params-yaml", params_yaml(inner.config, request.spec.training)]
    for port in request.spec.inputs:
        for path in request.inputs.get(port.name, []):
            arguments += [f"--{port.name}", str(_shared(path, Path(kubernetes.work.mount_path), folder / port.name))]
    arguments += ["--output", str(folder / request.spec.output), "--work", str(request.work)]
    command = job_command(
        [*arguments, *(["--force"] if request.force else [])],
        nodes=kubernetes.train_job.nodes,
        processes=request.training.processes,
        code=code_of(request.spec, request.work).digest,
        secrets=SECRETS if kubernetes.secrets else None,
    )
    environment = job_environment(os.environ)
    for name in ENVIRONMENT:
        if os.environ.get(name) and name not in environment:
            log.warning(
                "%s isn't given to the TrainJob: it holds a password, and whoever may list TrainJobs could read it: use"
                " kubernetes.secrets",
                name,
            )
    return TrainJob(
        name=job_name(key, request.spec.name),
        key=key,
        command=command,
        environment=environment,
        kubernetes=kubernetes,
        step=request.spec.name,
    )


def params_yaml(config: AvaConfig, section: str = "train") -> str:
    """What differs from the defaults, as text. The preset is among it by its values, and must not come on top again.

    The precision always: its default is up to the machine.

    With a model to begin from, the whole section `model`: what is left out there would be the parent's.

    Args:
        config: what was resolved.
        section: the settings of the training; those of other trainings are left out.
    """
    others = {spec.training for spec in STEPS.values() if spec.training} - {section}
    values = config.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude={"preset", "kubernetes", *others}
    )
    values.setdefault(section, {})["precision"] = getattr(config, section).precision
    if section == "train" and config.train.init is not None:
        values["model"] = config.model.model_dump(mode="json")
    return yaml.safe_dump(values, allow_unicode=True)


def _shared(path: Path, mount: Path, copy: Path) -> Path:
    """The path itself where it is on the volume, else that of a copy there; an earlier attempt's has the same bytes."""
    if path.is_relative_to(mount):
        return path
    if not copy.exists():
        copy_atomically(path, copy, beside={})
    return copy


def _left_nothing(run: StepRun) -> None:
    """In place of the training: called only if the job has left no finished output in the work folder."""
    raise AvaError(
        f"the TrainJob ended well, but left no finished output in {run.state.parent}: its machines must see the work"
        " folder under the same path"
    )
