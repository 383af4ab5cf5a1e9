"""Model, quantised models, evaluation and the gate's decision in; a version in the model registry out."""

from kfp import dsl

from components.container import folder, optional_folders, step_container


@dsl.container_component
def register(
    params_yaml: str,
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    gate: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    promoted: dsl.OutputPath(bool),  # type: ignore[valid-type]
    model_version: dsl.OutputPath(int),  # type: ignore[valid-type]
    quantized_int8: dsl.Input[dsl.Model] = None,
    quantized_int4: dsl.Input[dsl.Model] = None,
    quantized_fp32: dsl.Input[dsl.Model] = None,
    tracking_uri: str = "",
    git_commit: str = "",
):
    """Register the model in MLflow, and promote it to champion if the gate let it through.

    Args:
        params_yaml: The whole configuration as YAML.
        model: Output of train.
        evaluation: Output of evaluate.
        gate: Output of gate; compared again with whoever is champion when the alias moves.
        registration: Version, aliases, decision of the gate and addresses.
        metrics: promoted and model_version.
        promoted: Whether the version became champion.
        model_version: Version in the registry.
        quantized_int8: Output of quantize with int8.
        quantized_int4: Output of quantize with int4.
        quantized_fp32: Output of quantize with fp32.
        tracking_uri: Address of MLflow; empty, as the container's environment says.
        git_commit: Commit of the code and parameters, recorded with the run.
    """
    quantized = {
        "quantized_int8": quantized_int8,
        "quantized_int4": quantized_int4,
        "quantized_fp32": quantized_fp32,
    }
    return step_container(
        "register",
        params_yaml,
        inputs={
            "model": folder("model", model),
            "quantized": optional_folders("quantized", quantized),
            "evaluation": folder("evaluation", evaluation),
            "gate": folder("gate", gate),
        },
        output=registration,
        exports={"promoted": promoted, "model_version": model_version},
        tracking_uri=tracking_uri,
        git_commit=git_commit,
    )
