"""A part of `ava preprocess`: `kubernetes.preprocess_parts` of them clean the corpus at the same time."""

from kfp import dsl

from components.container import EXECUTOR_OUTPUT, with_environment
from components.image import IMAGE


@dsl.container_component
def preprocess_part(
    params_yaml: str,
    data: dsl.Input[dsl.Dataset],
    part: str,
    report: dsl.Output[dsl.Artifact],
    tracking_uri: str = "",
    git_commit: str = "",
):
    """Clean a part of the corpus; preprocess takes all parts up from the work volume.

    Args:
        params_yaml: The whole configuration as YAML.
        data: Folder with the corpus.
        part: Which one, as 2/4.
        report: What the cleaning filters counted; the documents are in the work volume.
        tracking_uri: Address of MLflow; empty, as the container's environment says.
        git_commit: Commit of the code and parameters.
    """
    return dsl.ContainerSpec(
        image=IMAGE,
        command=with_environment(["ava", "preprocess"], tracking_uri, git_commit),
        args=[
            *("--params-yaml", params_yaml),
            *("--data", data.path),
            *("--part", part),
            *("--output", report.path),
            *EXECUTOR_OUTPUT,
        ],
    )
