"""Corpus in, shards out."""

from kfp import dsl

from components.container import folder, step_container


@dsl.container_component
def preprocess(
    params_yaml: str,
    data: dsl.Input[dsl.Dataset],
    shards: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Clean, deduplicate, split and tokenise the corpus into shards.

    Args:
        params_yaml: The whole configuration as YAML.
        data: Folder with the corpus.
        shards: Token shards, tokenizer and dataset card.
        metrics: Counts of documents, bytes and tokens.
    """
    return step_container("preprocess", params_yaml, inputs={"data": folder("data", data)}, output=shards)
