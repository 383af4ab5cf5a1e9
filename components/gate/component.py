"""Model, quantised models and evaluation in; whether the model may become champion out."""

from kfp import dsl

from components.container import folder, optional_folders, step_container


@dsl.container_component
def gate(
    params_yaml: str,
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    gate: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    passed: dsl.OutputPath(bool),  # type: ignore[valid-type]
    quantized_int8: dsl.Input[dsl.Model] = None,
    quantized_int4: dsl.Input[dsl.Model] = None,
    quantized_fp32: dsl.Input[dsl.Model] = None,
    tracking_uri: str = "",
    git_commit: str = "",
):
    """Decide from the evaluation, and from the present champion's, whether a model may become champion.

    Args:
        params_yaml: The whole configuration as YAML.
        model: Output of train.
        evaluation: Output of evaluate.
        gate: The decision, with each bound and the value held against it.
        summary: The same as Markdown, where Kubeflow shows it.
        metrics: passed, bounds_checked, bounds_failed and smallest_margin.
        passed: Whether all bounds hold.
        quantized_int8: Output of quantize with int8.
        quantized_int4: Output of quantize with int4.
        quantized_fp32: Output of quantize with fp32.
        tracking_uri: Address of MLflow, whose champion is asked for; empty, as the container's environment says.
        git_commit: Commit of the code and parameters.
    """
    quantized = {
        "quantized_int8": quantized_int8,
        "quantized_int4": quantized_int4,
        "quantized_fp32": quantized_fp32,
    }
    return step_container(
        "gate",
        params_yaml,
        inputs={
            "model": folder("model", model),
            "quantized": optional_folders("quantized", quantized),
            "evaluation": folder("evaluation", evaluation),
        },
        output=gate,
        exports={"passed": passed, "summary": summary.path},
        tracking_uri=tracking_uri,
        git_commit=git_commit,
    )
