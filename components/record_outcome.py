"""The exit handler: runs last, whether the steps succeeded or not."""

from kfp import dsl

from components.container import EXECUTOR_OUTPUT, with_environment
from components.image import IMAGE


@dsl.container_component
def record_outcome(
    status: dsl.PipelineTaskFinalStatus,
    outcome: dsl.Output[dsl.Artifact],
    tracking_uri: str = "",
    git_commit: str = "",
):
    """Record how the pipeline ended: state, failed task and message.

    Args:
        status: Filled in by Kubeflow.
        outcome: Folder with outcome.json: state, failed_task and message.
        tracking_uri: Address of MLflow; empty, as the container's environment says.
        git_commit: Commit of the code and parameters.
    """
    return dsl.ContainerSpec(
        image=IMAGE,
        command=with_environment(["ava", "record-outcome"], tracking_uri, git_commit),
        args=["--status", status, "--output", outcome.path, *EXECUTOR_OUTPUT],
    )
