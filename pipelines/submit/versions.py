"""The pipeline on the server and its versions: what isn't there is uploaded, what is there is used."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import kfp_server_api
from kfp import Client

from pipelines.ava_pipeline import NAME
from pipelines.submit.exactly_once import create_once
from pipelines.submit.lookup import equals, first


def ensure_version(
    client: Client, ir: str, version: str, *, description: str = "", namespace: str | None = None
) -> Any:
    """The pipeline version of this name, uploaded if the server doesn't have it; the first one makes the pipeline.

    Args:
        client: of `connection.connect`.
        ir: the compiled pipeline: one YAML document, or two with the platform's part.
        version: its name, which holds a digest of `ir`: the same name means the same content.
        description: shown beside the version.
        namespace: Kubernetes namespace of the pipeline.
    """
    pipeline_id = _ensure_pipeline(client, namespace).pipeline_id

    def find() -> Any:
        named = equals("display_name", version)
        return first(client.list_pipeline_versions(pipeline_id, filter=named).pipeline_versions)

    found = find()
    if found is not None:
        return found
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "pipeline.yaml")
        package.write_text(ir, encoding="utf-8")
        return create_once(
            lambda: client.upload_pipeline_version(
                str(package), version, pipeline_id=pipeline_id, description=description
            ),
            find,
            named=True,
        )


def ensure_experiment(client: Client, name: str, namespace: str | None = None) -> Any:
    """The experiment of this name, made if the server doesn't have it."""
    return create_once(
        lambda: client.create_experiment(name, namespace=namespace),
        lambda: first(client.list_experiments(namespace=namespace, filter=equals("display_name", name)).experiments),
        named=True,
    )


def _ensure_pipeline(client: Client, namespace: str | None) -> Any:
    """The pipeline, made without a version: `upload_pipeline` would give its first version the pipeline's own name."""

    def find() -> Any:
        return first(client.list_pipelines(namespace=namespace, filter=equals("display_name", NAME)).pipelines)

    pipeline = kfp_server_api.V2beta1Pipeline(name=NAME, display_name=NAME, namespace=namespace)
    return find() or create_once(lambda: client.pipelines.pipeline_service_create_pipeline(pipeline), find, named=True)
