"""KFP's own command with our compiled file, against the same server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from pipelines.compile import compile_pipeline

KFP = Path(sys.executable).with_name("kfp")


def kfp(server, home: Path, *arguments: str) -> str:
    command = [str(KFP), "--endpoint", server.address, "--output", "json", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stock_command_runs_the_compiled_file(server, tmp_path):
    package = tmp_path / "pipeline.yaml"
    package.write_text(compile_pipeline(["int8", "int4"]))
    parameters = {"params_yaml": "preset: cpu/tiny", "data_uri": "s3://bucket/raw"}
    arguments = [f"{name}={value}" for name, value in parameters.items()]
    output = kfp(server, tmp_path, "run", "create", "-e", "by hand", "-f", str(package), *arguments)
    (run,) = server.state.runs
    assert run["run_id"] in output
    assert run["runtime_config"]["parameters"] == parameters
    documents = list(yaml.safe_load_all(package.read_text()))
    spec = run["pipeline_spec"]
    assert json.dumps(spec.get("pipeline_spec", spec), sort_keys=True) == json.dumps(documents[0], sort_keys=True)
    assert bool(spec.get("platform_spec")) == (len(documents) > 1)
    assert server.state.experiments[0]["display_name"] == "by hand"
