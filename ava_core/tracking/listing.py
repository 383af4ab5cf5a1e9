"""The latest runs on a tracking server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from ava_core.errors import one_line
from ava_core.tracking.connection import connect
from ava_core.tracking.faults import server_errors
from ava_core.tracking.labels import NOTES

FIGURES = ("validation_bits_per_byte", "test_bits_per_byte", "promoted", "model_version")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A row of the list of runs.

    Attributes:
        name: its name.
        experiment: its experiment's name.
        status: RUNNING, FINISHED, FAILED or KILLED.
        started: local time, `YYYY-MM-DD HH:MM`.
        figures: those of `FIGURES` that it has.
        notes: the first line of its description.
    """

    name: str
    experiment: str
    status: str
    started: str
    figures: Mapping[str, float]
    notes: str = ""


def list_runs(tracking_uri: str, limit: int = 20) -> list[Run]:
    """The latest runs of all experiments, the newest first.

    Raises:
        AvaError: the server doesn't answer or refuses.
    """
    client = connect(tracking_uri)
    with server_errors(tracking_uri, "listing the runs"):
        experiments = {item.experiment_id: item.name for item in client.search_experiments()}
        found = client.search_runs(list(experiments), order_by=["attributes.start_time DESC"], max_results=limit)
    return [
        Run(
            name=run.info.run_name,
            experiment=experiments[run.info.experiment_id],
            status=run.info.status,
            started=time.strftime("%Y-%m-%d %H:%M", time.localtime(run.info.start_time / 1000)),
            figures={name: run.data.metrics[name] for name in FIGURES if name in run.data.metrics},
            notes=one_line(run.data.tags.get(NOTES, "").split("\n")[0]),
        )
        for run in found
    ]
