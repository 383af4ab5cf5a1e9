"""Shards in, model out."""

from kfp import dsl

from components.container import folder, step_container


@dsl.container_component
def train(
    params_yaml: str,
    shards: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Train the model with DeepSpeed.

    Args:
        params_yaml: The whole configuration as YAML.
        shards: Output of preprocess.
        model: The trained model, with its tokenizer and history.
        metrics: Losses, steps and parameter counts.
    """
    return step_container("train", params_yaml, inputs={"shards": folder("shards", shards)}, output=model)
