"""The sides of `ava compare` as MLflow's evaluation runs, and the page that holds them against each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ava_core.evaluation.comparison.side import Side
    from ava_core.tracking.rest import Server

log = logging.getLogger(__name__)


def record_comparison(sides: Sequence[Side], experiment: str, environment: Mapping[str, str] | None = None) -> None:
    """Log the address of the page for each side after the first; an evaluation that has no run yet gets one.

    Does nothing where no tracking server is named, and fails nothing.

    Args:
        sides: two or more, the base first.
        experiment: name of the experiment that the runs belong to.
        environment: os.environ by default.
    """
    from ava_core.tracking.address import comparison_url
    from ava_core.tracking.rest import Server
    from ava_core.tracking.unfailing import PATIENCE, never_failing, server_uri

    environment = dict(os.environ) if environment is None else environment
    uri = server_uri(environment)
    if uri is None:
        return
    with never_failing(uri, "the comparison isn't recorded"):
        server = Server(uri, environment, PATIENCE)
        experiment_id = server.experiment_id(experiment)
        base, *others = (_run_of(server, experiment_id, side) for side in sides)
        for side, other in zip(sides[1:], others, strict=True):
            log.info(
                "mlflow: %s beside %s: %s", side.name, sides[0].name, comparison_url(uri, experiment_id, base, other)
            )


def _run_of(server: Server, experiment_id: str, side: Side) -> str:
    """The id of its evaluation's run."""
    from ava_core.evaluation.comparison.table import label
    from ava_core.evaluation.rows import evaluated_rows
    from ava_core.tracking.authorship import authorship
    from ava_core.tracking.evaluated import OUTPUT, find_evaluation, record_evaluation
    from ava_core.tracking.records import Corpus, Point, flatten

    if found := find_evaluation(server, experiment_id, side.digest):
        return found.run_id
    figures = side.contents["figures"]
    run = record_evaluation(
        server,
        experiment_id,
        name=f"evaluate {side.name}",
        tags={OUTPUT: side.digest, **authorship("ava compare")},
        parameters=side.parameters or flatten(side.contents.get("settings", {})),
        figures=[
            Point(label(name, model), float(value), 0)
            for model in side.models
            for name, value in figures[model].items()
            if value is not None
        ],
        corpus=Corpus(f"shards {side.shards[:8]}", side.shards, [], {}) if side.shards else None,
        rows=evaluated_rows(side.contents, side.losses),
    )
    return run.run_id
