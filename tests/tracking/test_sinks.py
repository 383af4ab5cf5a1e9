"""What the trackers beside MLflow are left with, read back with the tools that people read them with."""

import json
import queue

import pytest

from ava_core.config import resolve
from ava_core.config.run import RunConfig, TrackerName
from ava_core.errors import ConfigError
from ava_core.tracking.live import live_run, live_runs
from ava_core.tracking.sender import Sender, deliver_until_ended
from ava_core.tracking.sinks import TRACKERS, Assignment, require_installed, sink

SECRET = "hf_" + "A1b2C3d4" * 5


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path)


class Training:
    """A state folder, written to as a training does."""

    def __init__(self, folder):
        self.state, self.folder, self.events = folder / "state", folder / "tracking", []
        self.state.mkdir()

    def write(self, steps, mode="a"):
        with (self.state / "history.jsonl").open(mode) as file:
            for step in steps:
                file.write(json.dumps({"step": step, "tokens_seen": 100 * step, "train_loss": 4 / step}) + "\n")

    def sample(self, time, step):
        row = {"time": time, "step": step, "cpu_share": 0.5, "host_memory_bytes": 2e9}
        with (self.state / "system.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def sender(self, tracker):
        assignment = Assignment(
            tracker=tracker,
            experiment="verse",
            name="first try",
            identity={"ava.training": "a" * 32},
            tags={"ava.step": "train", "team": "prose"},
            notes="Does it *work*?",
            parameters={"train.steps": "10", "data.sources": f"https://me:{SECRET}@example.org/x"},
            state=str(self.state),
            folder=str(self.folder),
            every=0.01,
            closing=5.0,
        )
        return Sender(assignment=assignment, report=lambda event, value: self.events.append((event, value)))


def ended(word):
    filled = queue.Queue()
    filled.put(word)
    return filled


def resumed(training, tracker):
    """Six steps, killed and cut back to four, gone on with to eight."""
    training.write(range(1, 7))
    training.sample(1_700_000_000_500, 2)
    deliver_until_ended(training.sender(tracker), ended(""))
    training.write(range(1, 5), mode="w")
    sender = training.sender(tracker)
    sender.deliver()
    training.write(range(5, 9))
    deliver_until_ended(sender, ended("finish"))
    assert not [value for event, value in training.events if event == "fault"]


def losses(steps):
    return [(step, 4 / step) for step in steps]


def test_lines_of_json_are_those_of_one_undisturbed_run(training):
    resumed(training, "jsonl")
    rows = [json.loads(line) for line in (training.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row] == losses(range(1, 9))
    (system,) = [row for row in rows if "time" in row]
    assert system["time"] == 1_700_000_000_500 and system["system/cpu_share"] == 0.5
    run = json.loads((training.folder / "run.json").read_text())
    assert (run["name"], run["status"], run["notes"]) == ("first try", "FINISHED", "Does it *work*?")
    assert run["tags"]["team"] == "prose" and run["parameters"]["train.steps"] == "10"


def test_tensorboard_reads_each_step_once_with_the_time_of_the_machines_samples(training):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    resumed(training, "tensorboard")
    events = EventAccumulator(str(training.folder))
    events.Reload()
    read = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert [step for step, _ in read] == list(range(1, 9))
    assert [value for _, value in read] == pytest.approx([value for _, value in losses(range(1, 9))])
    (sample,) = events.Scalars("system/cpu_share")
    assert (sample.step, sample.wall_time) == (2, 1_700_000_000.5)
    text = events.Tensors("run")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("# first try\n\nDoes it *work*?") and "| team | prose |" in text


def wandb_records(content):
    """The records in an offline run's file: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, data = 7, b""
    while place + 7 <= len(content):
        if 32_768 - place % 32_768 < 7:  # no room for a header
            place += 32_768 - place % 32_768
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        data += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(data)
            data = b""


@pytest.mark.slow
def test_wandb_stays_offline_and_holds_one_run_with_rows_names_and_no_secret(training, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("A_TOKEN", SECRET)
    resumed(training, "wandb")
    (folder,) = (training.folder / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    steps, run = [], None
    for record in wandb_records(file.read_bytes()):
        if record.HasField("history"):
            row = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
            steps.append((int(row["_step"]), float(row["train_loss"])))
        elif record.HasField("run"):
            run = record.run
    assert steps == losses(range(1, 9))
    assert run.run_id == "a" * 32 and folder.name.endswith(run.run_id)
    assert (run.display_name, run.notes, list(run.tags), run.project) == (
        "first try", "Does it *work*?", ["team:prose"], "verse"
    )  # fmt: skip
    assert not [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_every_tracker_that_is_allowed_is_there():
    from typing import get_args

    assert get_args(TrackerName) == tuple(TRACKERS)


def test_missing_libraries_are_named_with_their_extra(monkeypatch):
    monkeypatch.setattr(sink, "find_spec", lambda name: None)
    require_installed(["jsonl"])
    with pytest.raises(ConfigError) as caught:
        require_installed(["tensorboard", "wandb"])
    assert [fault.split(", which")[0] for fault in caught.value.faults] == [
        "run.trackers: tensorboard: needs tensorboard",
        "run.trackers: wandb: needs wandb",
    ]
    assert all("pip install 'ava-moe[trackers]'" in fault for fault in caught.value.faults)


@pytest.mark.parametrize(
    ("run", "line"),
    [
        ({"trackers": ["tensorbord"]}, r"run\.trackers\.0 = tensorbord: must be one of .*: did you mean tensorboard\?"),
        ({"trackers": ["jsonl", "jsonl"]}, r"run\.trackers = \['jsonl', 'jsonl'\]: names one twice"),
        ({"tags": {"ava.key": "1"}}, r"run\.tags\.ava\.key = 1: begins as those that Ava and MLflow set: rename it"),
        ({"tags": {"team": 3}}, r"run\.tags\.team = 3: must be text"),
        ({"name": ""}, r"run\.name = : must not be empty"),
        ({"nmae": "x"}, r"run\.nmae: unknown key: did you mean run\.name\?"),
    ],
)
def test_what_a_run_cannot_be_called_is_refused(run, line):
    with pytest.raises(ConfigError, match=line):
        resolve(params_text=json.dumps({"run": run}))


RUN = RunConfig(name="first try", tags={"team": "prose"}, notes="Why", trackers=["jsonl"])


def test_mlflows_run_has_the_name_tags_and_notes_that_were_asked_for(tmp_path):
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    given = live_run(experiment="e", parameters={}, state=tmp_path, environment=environment, run=RUN).assignment
    assert given.name == "first try"
    assert given.tags["team"] == "prose" and given.tags["mlflow.note.content"] == "Why"
    environment["AVA_PIPELINE_RUN"] = "p-1"  # there the name is the parent's
    given = live_run(experiment="e", parameters={}, state=tmp_path, environment=environment, run=RUN).assignment
    assert given.name == "train" and given.tags["team"] == "prose"


def test_trackers_follow_a_training_without_mlflow(training):
    settings = {"attachments": {}, "environment": {}, "folder": training.folder, "state": training.state}
    with live_runs(experiment="e", parameters={"seed": 1}, run=RUN, **settings):
        training.write(range(1, 4))
    rows = [json.loads(line) for line in (training.folder / "jsonl" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert json.loads((training.folder / "jsonl" / "run.json").read_text())["status"] == "FINISHED"
