"""The exit handler's record, from both spellings of Kubeflow's final status."""

import json
import os
import subprocess
import sys

import pytest

from ava_core.errors import ConfigError
from ava_core.runtime.outcome import Outcome

SUCCESS = {"state": "SUCCEEDED", "pipeline_task_name": "exit-handler-1", "error": {}}
LOCAL = {"state": "FAILED", "pipeline_task_name": "train", "error": {"code": 1, "message": "Task train failed."}}
CLUSTER = {"state": "FAILED", "pipelineTaskName": "train", "error": {"code": 9, "message": "OOMKilled"}}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (SUCCESS, ("SUCCEEDED", None, "")),
        (LOCAL, ("FAILED", "train", "Task train failed.")),
        (CLUSTER, ("FAILED", "train", "OOMKilled")),
        ({"state": "CANCELLED", "pipelineTaskName": "train"}, ("CANCELLED", "train", "")),
        ({"state": "FAILED", "error": None}, ("FAILED", None, "")),
    ],
)
def test_final_status_is_read_in_both_spellings(status, expected):
    outcome = Outcome.parse(json.dumps(status))
    assert (outcome.state, outcome.failed_task, outcome.message) == expected


@pytest.mark.parametrize("text", ["", "SUCCEEDED", "{}", "[1]", "null", '{"state": "FAILED", "error": "oom"}'])
def test_anything_else_is_refused_with_the_text_in_the_line(text):
    with pytest.raises(ConfigError, match=r"--status .*: is no final status of a pipeline"):
        Outcome.parse(text)


def test_command_writes_the_record_and_tells_kubeflow(tmp_path):
    from kfp.local import executor_output_utils

    flags = {
        "status": json.dumps(CLUSTER),
        "output": str(tmp_path / "outcome"),
        "executor-output": str(tmp_path / "eo"),
    }
    command = [sys.executable, "-m", "ava_core.cli.main", "record-outcome"]
    command += [word for name, value in flags.items() for word in (f"--{name}", value)]
    # A dead tracking server is no reason for the exit handler to fail.
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_RUN_ID": "0" * 32}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "pipeline FAILED: train: OOMKilled\n"
    expected = {"state": "FAILED", "failed_task": "train", "message": "OOMKilled", "run_url": None}
    assert json.loads((tmp_path / "outcome" / "outcome.json").read_text()) == expected
    artifact = executor_output_utils.load_executor_output(str(tmp_path / "eo")).artifacts["outcome"].artifacts[0]
    assert artifact.uri == str(tmp_path / "outcome") and dict(artifact.metadata.items()) == {**expected, "run_url": ""}


def test_wrong_status_exits_2(tmp_path):
    command = [
        sys.executable,
        "-m",
        "ava_core.cli.main",
        "record-outcome",
        "--status",
        "x",
        "--output",
        str(tmp_path / "o"),
    ]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()
