"""The pipeline's overhead, from runs made by hand."""

import json
import sys

import pytest

from benchmarks import pipeline

TABLE = """preprocess: started (1 of 3)
preprocess: succeeded (2.0 s)

step            status     seconds  cached  figures
preprocess      succeeded      2.0  no      vocab_size 3
train           succeeded     96.0  no
quantize-int8   succeeded      1.0  no
total                         99.0
"""
OWN = {"preprocess": 1.5, "train": 94.0}


@pytest.fixture
def measure(tmp_path, monkeypatch, capsys):
    """Measure runs that took so many seconds by the clock; gives the exit code and what was printed and kept."""

    def call(first: float, again: float, runner: str = "host") -> tuple[int, str, dict]:
        seconds = iter([first, again])

        def run(command, environment):
            folder = command[command.index("--runs") + 1]
            for task, own in OWN.items():
                output = pipeline.Path(folder, "ava-2026", task)
                output.mkdir(parents=True, exist_ok=True)
                (output / "output.timings.json").write_text(json.dumps({"wall_seconds": own}))
            return next(seconds), TABLE

        monkeypatch.setattr(pipeline, "run", run)
        monkeypatch.setattr(pipeline.mlflow_server, "ensure", lambda: "http://127.0.0.1:1")
        code = pipeline.main(["--runner", runner, "--results", str(tmp_path)])
        (file,) = tmp_path.glob("*.json")
        return code, capsys.readouterr().out, json.loads(file.read_text())[f"pipeline, {runner}"]

    return call


def test_overhead_is_the_clock_s_time_less_the_steps_own(measure):
    code, printed, kept = measure(100.0, 9.0)
    assert code == 0 and "overhead: 4.5% of 100.0 s (host; at most 10%)" in printed
    assert kept["overhead"] == pytest.approx(0.045) and kept["own_seconds"] == 95.5
    assert kept["tasks"] == {"preprocess": [2.0, 1.5], "train": [96.0, 94.0], "quantize-int8": [1.0, 0]}
    assert ["around", "the", "steps", "1.0", "1.0"] in [line.split() for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("first", "again", "runner", "code"), [(108, 9, "host", 1), (108, 9, "docker", 0), (100, 15, "host", 1)]
)
def test_missed_bound_fails(measure, first, again, runner, code):
    assert measure(first, again, runner)[0] == code


def test_failed_run_is_no_measurement():
    with pytest.raises(SystemExit, match="the pipeline ended with 3\nmuch went wrong"):
        pipeline.run([sys.executable, "-c", "print('much went wrong'); raise SystemExit(3)"], {})
