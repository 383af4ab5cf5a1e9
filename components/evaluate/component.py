"""Model, shards and quantised models in; measurements, samples and the report out."""

from kfp import dsl

from components.container import folder, optional_folders, step_container


@dsl.container_component
def evaluate(
    params_yaml: str,
    model: dsl.Input[dsl.Model],
    shards: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    classification: dsl.Output[dsl.ClassificationMetrics],
    metrics: dsl.Output[dsl.Metrics],
    quantized_int8: dsl.Input[dsl.Model] = None,
    quantized_int4: dsl.Input[dsl.Model] = None,
    quantized_fp32: dsl.Input[dsl.Model] = None,
    tracking_uri: str = "",
    git_commit: str = "",
):
    """Score the test split, sample, and write the report.

    Args:
        params_yaml: The whole configuration as YAML.
        model: Output of train.
        shards: Output of preprocess.
        evaluation: Figures, samples and report.html.
        report: The same report.html, where Kubeflow shows it.
        summary: Figures and samples in short, as Markdown.
        classification: ROC curve and confusion matrix of the float model's most probable tokens.
        metrics: Bits per byte, perplexity, accuracy and expert utilisation.
        quantized_int8: Output of quantize with int8.
        quantized_int4: Output of quantize with int4.
        quantized_fp32: Output of quantize with fp32.
        tracking_uri: Address of MLflow; empty, as the container's environment says.
        git_commit: Commit of the code and parameters.
    """
    quantized = {
        "quantized_int8": quantized_int8,
        "quantized_int4": quantized_int4,
        "quantized_fp32": quantized_fp32,
    }
    return step_container(
        "evaluate",
        params_yaml,
        inputs={
            "model": folder("model", model),
            "shards": folder("shards", shards),
            "quantized": optional_folders("quantized", quantized),
        },
        output=evaluation,
        tracking_uri=tracking_uri,
        git_commit=git_commit,
        exports={"report": report.path, "summary": summary.path, "classification": classification.path},
    )
