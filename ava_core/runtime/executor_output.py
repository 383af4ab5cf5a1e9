"""KFP's ExecutorOutput: how a container component tells KFP the metadata of its output artifacts.

See kfp.dsl.types / kfp.local.executor_output_utils of kfp 2.17; format: `pipeline_spec.ExecutorOutput` as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

from ava_core.steps import StepSpec


def write(path: Path, spec: StepSpec, output: Path, metrics: dict[str, float]) -> None:
    """Write the ExecutorOutput of a finished step: its output folder, and its metrics as a Metrics artifact."""
    artifacts = {
        spec.output: {"artifacts": [{"name": spec.output, "metadata": {"step": spec.name}}]},
        "metrics": {"artifacts": [{"name": "metrics", "metadata": metrics}]},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"artifacts": artifacts}, sort_keys=True))
