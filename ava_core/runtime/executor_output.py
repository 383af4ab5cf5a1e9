"""KFP's ExecutorOutput: how a container component tells KFP the metadata of its output artifacts.

kfp.local (2.17) keeps only the artifacts that this file lists, and takes their addresses from it; a cluster's launcher
merges it with what it knows. Format: `pipeline_spec.ExecutorOutput` as JSON.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ava_core.errors import ConfigError
from ava_core.files import write_whole
from ava_core.runtime.request import Request

MOUNTS = {"/gcs/": "gs://", "/minio/": "minio://", "/s3/": "s3://"}
"""Where a cluster's launcher shows object stores to the step, and the addresses they stand for, as in kfp.dsl."""


def write(path: Path, artifacts: Mapping[str, tuple[Path | None, Mapping[str, Any]]]) -> None:
    """Write the ExecutorOutput of a finished step, whole or not at all.

    Args:
        path: where KFP reads it.
        artifacts: path and metadata of each output artifact; no path for one that is metadata alone (Metrics).
    """
    listed = {}
    for name, (artifact, metadata) in artifacts.items():
        entry: dict[str, Any] = {"name": name, "metadata": dict(metadata)}
        if artifact is not None:
            entry["uri"] = address(artifact)
        listed[name] = {"artifacts": [entry]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"artifacts": listed}, sort_keys=True))


def report(request: Request, reused: bool) -> None:
    """Write the step's exports (files and parameters) and its ExecutorOutput, also for a reused output.

    Args:
        request: what the step was asked for; its output is finished.
        reused: whether it was taken from finished work, as the output artifact's metadata says.
    """
    metrics = json.loads((request.output / "metrics.json").read_text())
    artifacts: dict[str, tuple[Path | None, Mapping[str, Any]]] = {
        request.spec.output: (request.output, {"step": request.spec.name, "reused": reused}),
        "metrics": (None, metrics),
    }
    for export in request.spec.exports:
        path = request.exports.get(export.name)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if export.file is not None:
                shutil.copyfile(request.output / export.file, path)
                artifacts[export.name] = (path, json.loads(path.read_text()) if export.metadata else {})
            else:
                value = int(metrics[export.metric])
                path.write_text(json.dumps(bool(value) if export.boolean else value))
    if request.executor_output is not None:
        write(request.executor_output, artifacts)


def wanted(path: Path | None, executor_input: str | None) -> Path | None:
    """Where KFP reads the ExecutorOutput.

    Args:
        path: as --executor-output gives it. A cluster's launcher leaves its placeholder unfilled, so the other wins.
        executor_input: KFP's ExecutorInput as JSON, which names it.

    Raises:
        ConfigError: it doesn't.
    """
    if executor_input is None:
        return path
    try:
        return Path(json.loads(executor_input)["outputs"]["outputFile"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--executor-input {executor_input[:80]}: is no ExecutorInput of KFP ({type(error).__name__}): must be JSON"
            " with outputs.outputFile"
        ) from error


def address(path: Path) -> str:
    """The artifact's address: of the object store below a cluster's mounts, else the path itself."""
    for mount, scheme in MOUNTS.items():
        if path.is_relative_to(mount):
            return scheme + path.relative_to(mount).as_posix()
    return str(path)
