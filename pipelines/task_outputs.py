"""What a finished task left, checked against the outputs that its component declares.

kfp.local takes an exit code of 0 for success: a task without its outputs would be reported as done, and the next one
would fail for a reason that isn't its own.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ava_core.errors import first_line

EXECUTOR_OUTPUT = "executor_output.json"
METRICS = "system.Metrics"
CLASSIFICATION = "system.ClassificationMetrics"
NUMBER_TYPES = ("NUMBER_DOUBLE", "NUMBER_INTEGER")


def find_faults(folder: Path, component: Mapping[str, Any]) -> list[str]:
    """What is missing or broken in a task's folder, one line each.

    Args:
        folder: the task's folder.
        component: its ComponentSpec in the compiled pipeline, as JSON.
    """
    outputs = component.get("outputDefinitions", {})
    return [
        *_artifact_faults(folder, outputs.get("artifacts", {})),
        *_parameter_faults(folder, outputs.get("parameters", {})),
    ]


def was_cached(folder: Path) -> bool:
    """Whether a task's step reused finished work, as it says in its executor output."""
    return any(metadata.get("reused") is True for metadata in _read_metadata(folder).values())


def read_figures(folder: Path, component: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a task that has no faults, and what a clock or a memory meter gave beside its outputs."""
    artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
    metadata = _read_metadata(folder)
    figures: dict[str, float] = {}
    for name, spec in artifacts.items():
        if _type(spec) == METRICS:
            figures |= metadata.get(name, {})
    for file in sorted(folder.glob("*.timings.json")):
        with contextlib.suppress(OSError, ValueError):
            figures |= json.loads(file.read_text(encoding="utf-8"))
    return figures


def _read_metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """Metadata of the artifacts in a task's executor output, by name; empty if that can't be read."""
    try:
        listed = json.loads((folder / EXECUTOR_OUTPUT).read_text(encoding="utf-8"))["artifacts"]
        return {name: entry["artifacts"][0].get("metadata", {}) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return {}


def _artifact_faults(folder: Path, promised: dict[str, Any]) -> Iterator[str]:
    if not promised:
        return
    try:
        listed = _read_executor_output(folder / EXECUTOR_OUTPUT)
    except OSError as error:
        yield f"wrote no {EXECUTOR_OUTPUT} ({error.strerror})"
        return
    except ValueError as error:
        yield f"{EXECUTOR_OUTPUT} can't be read: {error}"
        return
    for name in listed.keys() - promised.keys():
        yield f"{EXECUTOR_OUTPUT} lists {name}, which the component doesn't have"
    for name, spec in promised.items():
        artifact = listed.get(name)
        if artifact is None:
            yield f"{EXECUTOR_OUTPUT} lists no {name}"
        # Artifacts of these two types are their metadata: no file belongs to them.
        elif _type(spec) == METRICS:
            yield from _metric_faults(name, artifact["metadata"])
        elif _type(spec) == CLASSIFICATION:
            yield from _curve_faults(name, artifact["metadata"])
        elif not Path(artifact["uri"] or folder / name).exists():
            yield f"its output {name} is missing: {artifact['uri'] or folder / name}"
        elif not artifact["uri"]:
            yield f"{EXECUTOR_OUTPUT} gives no address for {name}"
        else:
            yield from _folder_faults(name, Path(artifact["uri"]))


def _read_executor_output(path: Path) -> dict[str, dict[str, Any]]:
    """Address and metadata of each artifact, read as kfp.local will read it.

    Raises:
        OSError: there is no file.
        ValueError: it isn't an ExecutorOutput.
    """
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    text = path.read_text(encoding="utf-8")
    try:
        message = json_format.Parse(text, pipeline_spec_pb2.ExecutorOutput())
    except json_format.ParseError as error:
        raise ValueError(first_line(error)[:200]) from error
    artifacts = {name: entry.artifacts[0] for name, entry in message.artifacts.items() if entry.artifacts}
    return {
        name: {"uri": artifact.uri, "metadata": dict(artifact.metadata.items())} for name, artifact in artifacts.items()
    }


def _metric_faults(name: str, metrics: dict[str, Any]) -> Iterator[str]:
    if not metrics:
        yield f"its {name} are empty"
    for key, value in metrics.items():
        if not _is_number(value):
            yield f"its {name} are corrupt: {key} = {value!r}: not a finite number"


def _curve_faults(name: str, metadata: Any, path: str = "") -> Iterator[str]:
    """Curves and matrices are nested; whatever is a number in them must be one that can be drawn."""
    if isinstance(metadata, Mapping):
        if not metadata and not path:
            yield f"its {name} are empty"
        for key, value in metadata.items():
            yield from _curve_faults(name, value, f"{path}.{key}" if path else key)
    elif isinstance(metadata, Sequence) and not isinstance(metadata, str):
        for index, value in enumerate(metadata):
            yield from _curve_faults(name, value, f"{path}.{index}")
    elif isinstance(metadata, float) and not math.isfinite(metadata):
        yield f"its {name} are corrupt: {path} = {metadata!r}: not a finite number"


def _type(spec: Mapping[str, Any]) -> str | None:
    return spec["artifactType"].get("schemaTitle")


def _folder_faults(name: str, folder: Path) -> Iterator[str]:
    """A step's output folder carries its own figures; a broken file is found before the next step reads it."""
    if not folder.is_dir():
        return
    for file in ("manifest.json", "metrics.json"):
        if not (folder / file).exists():
            continue
        try:
            content = json.loads((folder / file).read_text(encoding="utf-8"))
        except ValueError as error:
            yield f"its output {name} is corrupt: {file}: {error}"
            continue
        if file == "metrics.json":
            if not isinstance(content, dict):
                yield f"its output {name} is corrupt: {file} holds no figures by name"
            else:
                yield from _metric_faults(f"{name}/{file}", content)


def _parameter_faults(folder: Path, promised: dict[str, Any]) -> Iterator[str]:
    for name, spec in promised.items():
        kind = spec.get("parameterType")
        try:
            text = (folder / name).read_text(encoding="utf-8")
        except OSError:
            yield f"its output parameter {name} is missing"
            continue
        if kind == "STRING":
            continue
        try:
            value = json.loads(text.lower() if kind == "BOOLEAN" else text)
        except ValueError:
            yield f"its output parameter {name} = {text[:80]!r}: not valid JSON"
            continue
        if (kind == "BOOLEAN" and not isinstance(value, bool)) or (kind in NUMBER_TYPES and not _is_number(value)):
            yield f"its output parameter {name} = {text[:80]!r}: not a {kind}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
