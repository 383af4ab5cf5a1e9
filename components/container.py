"""What the containers of all components have in common.

KFP replaces placeholders when a step starts, so values here name what will be there; they are not the things
themselves.
"""

from collections.abc import Sequence
from typing import Any

from kfp import dsl

PARAMETERS = {
    "params_yaml": "The whole configuration as YAML.",
    "tracking_uri": "Address of MLflow; empty, as the container's environment says.",
    "git_commit": "Commit of the code and parameters.",
}
"""Descriptions of the parameters that every step's component has."""
EXECUTOR_INPUT = "{{$}}"
"""KFP's ExecutorInput as JSON, which has the address of the file for the ExecutorOutput in it."""
EXECUTOR_OUTPUT = (
    "--executor-output",
    dsl.PIPELINE_TASK_EXECUTOR_OUTPUT_PATH_PLACEHOLDER,
    "--executor-input",
    EXECUTOR_INPUT,
)
"""Where the ExecutorOutput goes, twice. Without that file kfp.local loses a container component's output artifacts; on
a cluster it carries metrics and metadata. A cluster's launcher fills in the second only, and leaves the first as it is.
"""


def with_environment(command: Sequence[str], tracking_uri: Any, git_commit: Any) -> list[Any]:
    """`env NAME=value ... command`: the one way to fill variables from parameters without a shell.

    `PipelineTask.set_env_variable` takes constants only. An empty value counts as not given. The third variable of a
    pipeline's step, AVA_PIPELINE_RUN, comes from the pod (pipelines/kubernetes.py) or the local runner: as an input of
    the component, Kubeflow's cache would never hit, for it differs in each run.
    """
    return ["env", f"AVA_TRACKING_URI={tracking_uri}", f"AVA_GIT_COMMIT={git_commit}", *command]
