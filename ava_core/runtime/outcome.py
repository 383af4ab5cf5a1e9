"""How a pipeline ended, as Kubeflow tells its exit handler."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ava_core.errors import ConfigError
from ava_core.files import write_json

NAME = "outcome.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a pipeline.

    Attributes:
        state: SUCCEEDED, FAILED or CANCELLED.
        failed_task: the task, or the group of tasks, that failed; None on success.
        message: what Kubeflow says about the failure; empty on success.
        run_url: page of the pipeline's run in MLflow; None where it has none.
    """

    state: str
    failed_task: str | None
    message: str
    run_url: str | None = None

    @classmethod
    def parse(cls, status: str) -> Outcome:
        """Read a `PipelineTaskFinalStatus`: a cluster writes its keys in camelCase, kfp.local in snake_case.

        Raises:
            ConfigError: it isn't one.
        """
        try:
            fields = json.loads(status)
            state = str(fields["state"])
            task = fields.get("pipelineTaskName", fields.get("pipeline_task_name"))
            message = str((fields.get("error") or {}).get("message") or "")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"--status {status[:80]}: is no final status of a pipeline ({type(error).__name__}): "
                "Kubeflow fills it in as JSON with the key `state`"
            ) from error
        return cls(state=state, failed_task=None if state == "SUCCEEDED" else task, message=message)

    def write(self, folder: Path) -> None:
        """Write `folder`/outcome.json, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / NAME, asdict(self))
