"""The exit handler: runs last, whether the steps succeeded or not."""

from kfp import dsl

from components.container import EXECUTOR_OUTPUT
from components.image import IMAGE


@dsl.container_component
def record_outcome(status: dsl.PipelineTaskFinalStatus, outcome: dsl.Output[dsl.Artifact]):
    """Record how the pipeline ended: state, failed task and message.

    Args:
        status: Filled in by Kubeflow.
        outcome: Folder with outcome.json: state, failed_task and message.
    """
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["ava", "record-outcome"],
        args=["--status", status, "--output", outcome.path, *EXECUTOR_OUTPUT],
    )
