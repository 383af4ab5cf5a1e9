"""A TrainJob as the `kubeflow` SDK wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ava_core.launching.trainjob import REPLICATED_JOBS, TrainJob

if TYPE_CHECKING:
    from kubeflow.trainer import Runtime


def container(job: TrainJob, runtime: Runtime) -> Any:
    """The trainer of the job: image, machines, what each of them has, environment."""
    from kubeflow.trainer import CustomTrainerContainer

    # The image is the runtime's: one that is given here would reach the launcher, but not the nodes.
    return CustomTrainerContainer(
        image=runtime.trainer.image,
        num_nodes=job.kubernetes.train_job.nodes,
        resources_per_node=dict(job.resources),
        env=dict(job.environment) or None,
    )


def options_of(job: TrainJob) -> list[Any]:
    """Everything else that is said of the job: names, command, deadline, and what the runtime's pods get on top."""
    from kubeflow.trainer import options

    return [
        options.Name(job.name),
        options.Labels(job.labels),
        options.Annotations(job.annotations),
        options.TrainerCommand(job.command),
        options.ActiveDeadlineSeconds(job.kubernetes.train_job.timeout_minutes * 60),
        options.RuntimePatch(
            options.TrainingRuntimeSpecPatch(
                options.JobSetTemplatePatch(
                    spec=options.JobSetSpecPatch([_patch(job, name) for name in REPLICATED_JOBS])
                )
            )
        ),
    ]


def _patch(job: TrainJob, replicated_job: str) -> Any:
    from kubeflow.trainer import options

    pod = job.pod(replicated_job)
    spec = options.PodSpecPatch(
        volumes=pod["volumes"],
        containers=[options.ContainerPatch("node", volume_mounts=pod["volumeMounts"])],
        node_selector=pod["nodeSelector"] or None,
        tolerations=pod["tolerations"] or None,
        image_pull_secrets=pod["imagePullSecrets"] or None,
    )
    pods = options.PodTemplatePatch(metadata=pod["metadata"] or None, spec=spec)
    template = options.JobTemplatePatch(spec=options.JobSpecPatch(pods))
    return options.ReplicatedJobPatch(replicated_job, template)
