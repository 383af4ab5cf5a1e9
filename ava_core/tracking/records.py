"""Parameters, metric series and the corpus of a run, as plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ava_core.config.data import SOURCE_KINDS
from ava_core.errors import IntegrityError

# MLflow's limits (mlflow.utils.validation): entries per request, characters per value.
METRICS_PER_BATCH = 1000
PARAMETERS_PER_BATCH = 100
PARAMETER_CHARACTERS = 6000
DATASET_DIGEST_CHARACTERS = 36
CONTEXT_KEY = "mlflow.data.context"
DATASET_CONTEXT = {"key": CONTEXT_KEY, "value": "training, validation, test"}
TEST_CONTEXT = {"key": CONTEXT_KEY, "value": "test"}
"""Of an evaluation's run."""


class Point(NamedTuple):
    """One value of a metric at a training step."""

    name: str
    value: float
    step: int


class Corpus(NamedTuple):
    """The data of a run, as an MLflow dataset input.

    Attributes:
        name: the sources' names, joined.
        digest: digest of the shards' contents.
        sources: `data.sources` of the configuration.
        counts: documents, tokens and bytes per split, by metric name.
    """

    name: str
    digest: str
    sources: Sequence[Mapping[str, Any]]
    counts: Mapping[str, float]

    def as_dataset(self) -> dict[str, str]:
        """The fields of MLflow's Dataset entity."""
        hub = next((source for source in self.sources if "hub" in source), None)
        location = {"path": hub["hub"], "split": hub.get("split"), "revision": hub.get("revision")} if hub else None
        return {
            "name": self.name,
            "digest": self.digest[:DATASET_DIGEST_CHARACTERS],
            "source_type": "hf" if hub and len(self.sources) == 1 else "local",
            "source": json.dumps({**(location or {"uri": self.name}), "sources": self.sources}, sort_keys=True),
            "profile": json.dumps({**self.counts, "shards_digest": self.digest}, sort_keys=True),
        }


class Row(NamedTuple):
    """A row of an evaluation, as MLflow's page of evaluation runs shows and compares it.

    Attributes:
        kind: what it is of: a document, a sample.
        request: what tells it from the others, by which the rows of two runs are put side by side.
        response: what came out.
        figures: what was measured on it.
    """

    kind: str
    request: Mapping[str, str]
    response: str
    figures: Mapping[str, float]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and text values of a nested configuration; lists become JSON, long values are cut."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[name] = text[:PARAMETER_CHARACTERS]
    return flat


def read_history(path: Path) -> list[Point]:
    """The metric series in a history.jsonl of `{"step": ..., NAME: NUMBER, ...}` lines; other values are left out.

    Raises:
        IntegrityError: a line is no such object.
    """
    points = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            points += row_points(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{path}:{number}: is no history record: restore the folder or train again") from error
    return points


def row_points(row: Mapping[str, Any]) -> list[Point]:
    """The figures of one row at its `step`, by name; values that aren't finite numbers are left out.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is no such row.
    """
    step = int(row["step"])
    figures = sorted((name, value) for name, value in row.items() if name != "step" and _is_figure(value))
    return [Point(name, float(value), step) for name, value in figures]


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items, in order."""
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def describe_corpus(sources: Sequence[Mapping[str, Any]], digest: str, figures: Mapping[str, float]) -> Corpus:
    """The dataset input of a run.

    Args:
        sources: `data.sources` of the configuration.
        digest: digest of the shards' contents.
        figures: metrics of the steps; those that count documents, tokens or bytes of a split are kept.
    """
    given = [next((kind, str(source[kind])) for kind in SOURCE_KINDS if source.get(kind)) for source in sources]
    names = [Path(location).name if kind == "path" else location for kind, location in given]
    kinds = ("documents", "tokens", "bytes")
    counts = {
        f"{split}_{kind}": figures[f"{split}_{kind}"]
        for split in ("train", "validation", "test")
        for kind in kinds
        if f"{split}_{kind}" in figures
    }
    kept = [{key: value for key, value in source.items() if value is not None} for source in sources]
    return Corpus("+".join(names)[:500], digest, kept, counts)
