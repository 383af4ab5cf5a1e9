"""`ava tasks`: the project's own tasks as files, and what is refused."""

import json
import subprocess
import sys

import pytest
import yaml


def ava_tasks(*arguments):
    command = [sys.executable, "-m", "ava_core.cli.main", "tasks", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_both_tasks_are_written_and_an_existing_folder_is_refused(tiny_shards, tmp_path):
    output = tmp_path / "tasks"
    done = ava_tasks("--shards", tiny_shards, "--output", output, "--limit", 25)
    assert done.returncode == 0, done.stderr
    assert "swapped_words.yaml: 25 questions from lines" in done.stdout
    assert {path.name for path in output.iterdir()} == {
        f"{name}.{kind}" for name in ("swapped_words", "next_line") for kind in ("yaml", "jsonl")
    }
    rows = [json.loads(line) for line in (output / "next_line.jsonl").read_text().splitlines()]
    assert len(rows) == yaml.safe_load((output / "next_line.yaml").read_text())["metadata"]["items"] == 25
    again = ava_tasks("--shards", tiny_shards, "--output", output)
    assert again.returncode == 2
    assert "exists: name a new folder" in again.stderr
