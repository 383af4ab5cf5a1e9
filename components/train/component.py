"""Shards in, model out."""

from kfp import dsl

from components.container import folder, step_container


@dsl.container_component
def train(
    params_yaml: str,
    shards: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    tracking_uri: str = "",
    git_commit: str = "",
):
    """Train the model with DeepSpeed.

    Args:
        params_yaml: The whole configuration as YAML.
        shards: Output of preprocess.
        model: The trained model, with its tokenizer and history.
        metrics: Losses, steps and parameter counts.
        tracking_uri: Address of MLflow; empty, as the container's environment says.
        git_commit: Commit of the code and parameters.
    """
    return step_container(
        "train",
        params_yaml,
        inputs={"shards": folder("shards", shards)},
        output=model,
        tracking_uri=tracking_uri,
        git_commit=git_commit,
    )
