"""Weights & Biases: offline unless WANDB_MODE says otherwise; `wandb sync` sends what lies in the folder.

Nothing but what MLflow gets is handed to it: no command line, no environment, no code, no console.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ava_core.redaction import redact
from ava_core.tracking.records import row_points
from ava_core.tracking.sinks.sink import Assignment

QUIET = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
"""Its console lines, and reports of its own faults to its makers."""


class WandbSink:
    """See `Sink`. Offline, a training that goes on writes its run anew; online it goes on in its run."""

    last_time = 0

    def __init__(self, given: Assignment) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import wandb

        folder = Path(given.folder)
        folder.mkdir(parents=True, exist_ok=True)
        identity = next(iter(given.identity.values()))[:64]
        mode = os.environ.get("WANDB_MODE") or "offline"
        if mode == "offline":
            for old in (folder / "wandb").glob(f"offline-run-*-{identity}"):
                shutil.rmtree(old)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or given.experiment,
            name=given.name,
            id=identity,
            resume="allow",
            tags=[f"{name}:{value}"[:64] for name, value in given.tags.items() if not name.startswith(("ava.", "ml"))],
            notes=given.notes or None,
            config={name: redact(value) for name, value in given.parameters.items()},
            dir=str(folder),
            mode=cast(Any, mode),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )
        self.last_step = max(0, self._run.step - 1) if self._run.resumed else 0
        self.address = self._run.url or f"wandb sync {Path(self._run.dir).parent}"

    def log_history(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[int]:
        """A row of figures per step."""
        for row in rows:
            self._run.log({point.name: point.value for point in row_points(row)}, step=int(row["step"]))
            yield int(row["step"])

    def log_system(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: its steps only grow, and these come after the history's rows of the same steps."""

    def attach(self, name: str, folder: str) -> None:
        """Nothing: what is large stays here."""

    def end(self, status: str) -> None:
        """Close the run, with an exit code that tells how it ended, and wait for the process that writes its file."""
        import wandb

        code = 0 if status == "FINISHED" else 1
        self._run.finish(exit_code=code)
        wandb.teardown(code)


def open_sink(given: Assignment) -> WandbSink:
    """The training's run."""
    return WandbSink(given)
