"""Corpus in, shards out."""

from kfp import dsl

from components.container import folder, step_container


@dsl.container_component
def preprocess(
    params_yaml: str,
    data: dsl.Input[dsl.Dataset],
    shards: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    tracking_uri: str = "",
    git_commit: str = "",
):
    """Clean, deduplicate, split and tokenise the corpus into shards.

    Args:
        params_yaml: The whole configuration as YAML.
        data: Folder with the corpus.
        shards: Token shards, tokenizer and dataset card.
        metrics: Counts of documents, bytes and tokens.
        tracking_uri: Address of MLflow; empty, as the container's environment says.
        git_commit: Commit of the code and parameters.
    """
    return step_container(
        "preprocess",
        params_yaml,
        inputs={"data": folder("data", data)},
        output=shards,
        tracking_uri=tracking_uri,
        git_commit=git_commit,
    )


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
    return step_container(
        "preprocess",
        params_yaml,
        inputs={"data": [*folder("data", data), "--part", part]},
        output=report,
        tracking_uri=tracking_uri,
        git_commit=git_commit,
    )
