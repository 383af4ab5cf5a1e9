"""What the sender leaves on a real server that fails as the test wants it to."""

import json
import queue

import pytest

from ava_core.tracking import sender as sender_module
from ava_core.tracking.connection import connect
from ava_core.tracking.sender import Assignment, Sender, deliver_until_ended
from tests.registry.proxy import Proxy


@pytest.fixture(autouse=True)
def no_given_run(monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def client(mlflow_server):
    return connect(mlflow_server)


class Training:
    """A state folder and what was reported about it."""

    def __init__(self, folder, experiment):
        self.folder, self.experiment = folder, experiment
        self.events = []

    def write(self, steps, mode="a"):
        with (self.folder / "history.jsonl").open(mode) as file:
            for step in steps:
                row = {"step": step, "tokens_seen": 100 * step, "train_loss": 1 / step, "rate": float("inf")}
                file.write(json.dumps(row) + "\n")

    def sender(self, uri, **settings):
        settings = {"every": 0.01, "closing": 10.0, **settings}
        assignment = Assignment(
            uri=uri,
            experiment=self.experiment,
            name="train",
            identity={"ava.training": self.experiment},
            tags={"ava.step": "train"},
            parameters={"train.steps": "10"},
            state=str(self.folder),
            **settings,
        )
        return Sender(assignment=assignment, report=lambda event, value: self.events.append((event, value)))

    def sent(self):
        return [value for event, value in self.events if event == "sent"]

    def run(self, client):
        experiment = client.get_experiment_by_name(self.experiment)
        (run,) = client.search_runs([experiment.experiment_id])
        return run


@pytest.fixture
def training(tmp_path, request):
    return Training(tmp_path, request.node.name)


def inbox(*words):
    filled = queue.Queue()
    for word in words:
        filled.put(word)
    return filled


def values(client, run, name="train_loss"):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def losses(steps):
    return [(step, 1 / step) for step in steps]


def test_rows_arrive_while_the_training_runs_and_the_run_ends_with_it(training, client, mlflow_server):
    sender = training.sender(mlflow_server)
    training.write(range(1, 4))
    sender.deliver()
    run = training.run(client)
    assert values(client, run) == losses(range(1, 4))
    assert run.info.status == "RUNNING" and run.info.run_name == "train"
    assert run.data.params == {"train.steps": "10"}
    assert "rate" not in run.data.metrics
    training.write(range(4, 6))
    sender.deliver()
    sender.end("FAILED")
    run = training.run(client)
    assert values(client, run) == losses(range(1, 6))
    assert run.info.status == "FAILED"
    assert training.sent() == [0, 3, 5]


def test_rows_whose_answer_was_lost_are_there_once(training, client, mlflow_server):
    training.write(range(1, 6))
    lost = []
    with Proxy(mlflow_server, after=lambda method, path: lost.pop() if lost and "log-batch" in path else None) as proxy:
        sender = training.sender(proxy.address)
        sender.deliver()
        lost.append(503)
        training.write(range(6, 9))
        with pytest.raises(Exception, match="503"):
            sender.deliver()
        training.write(range(9, 11))
        sender.deliver()
    assert values(client, training.run(client)) == losses(range(1, 11))
    assert training.sent()[-2:] == [8, 10]  # the server was asked, and it had the rows


def test_server_that_is_absent_at_first_and_dies_in_the_middle_gets_every_row(training, client, mlflow_server):
    training.write(range(1, 4))
    answers = {"down": 4}

    def before(method, path):
        if "log-batch" in path and training.sent()[-1:] == [3] and not answers.get("died"):
            answers.update(died=True, down=3)
        answers["down"] -= 1
        return 503 if answers["down"] >= 0 else None

    with Proxy(mlflow_server, before=before) as proxy:
        sender = training.sender(proxy.address)
        box = inbox()

        def grow(event, value):
            training.events.append((event, value))
            if (event, value) == ("sent", 3) and not answers.get("died"):
                training.write(range(4, 8))
            if (event, value) == ("sent", 7):
                box.put("finish")

        sender.report = grow
        deliver_until_ended(sender, box)
    run = training.run(client)
    assert answers["died"]
    assert values(client, run) == losses(range(1, 8))
    assert run.info.status == "FINISHED"
    faults = [value for event, value in training.events if event == "fault"]
    assert len(faults) == 2 and all("HTTP 503" in fault and "\n" not in fault for fault in faults)


def test_resumed_training_goes_on_in_its_run_and_no_row_is_there_twice(training, client, mlflow_server):
    training.write(range(1, 8))
    deliver_until_ended(training.sender(mlflow_server), inbox(""))
    killed = training.run(client)
    assert killed.info.status == "KILLED"
    training.write(range(1, 5), mode="w")  # back at the checkpoint of step 4
    sender = training.sender(mlflow_server)
    sender.deliver()
    assert training.run(client).info.status == "RUNNING"
    training.write(range(5, 11))
    deliver_until_ended(sender, inbox("finish"))
    run = training.run(client)
    assert run.info.run_id == killed.info.run_id and run.info.status == "FINISHED"
    assert values(client, run) == losses(range(1, 11))


def test_given_run_is_filled_and_left_open(training, client, mlflow_server, monkeypatch):
    given = client.create_run(client.create_experiment(training.experiment)).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    training.write([1])
    deliver_until_ended(training.sender(mlflow_server), inbox("finish"))
    run = training.run(client)
    assert run.info.run_id == given and run.info.status == "RUNNING"
    assert values(client, run) == losses([1])


def test_long_history_is_sent_in_few_requests_and_no_row_is_divided(training, client, mlflow_server):
    training.write(range(1, 1202))
    with Proxy(mlflow_server) as proxy:
        training.sender(proxy.address).deliver()
        batches = [entry for entry in proxy.seen if "log-batch" in entry]
    assert len(batches) == 1 + 3  # parameters, and 2 x 1201 figures
    assert training.sent() == [0, 500, 1000, 1201]
    assert values(client, training.run(client)) == losses(range(1, 1202))


def test_system_metrics_have_the_time_at_which_they_were_measured(training, client, mlflow_server):
    row = {"time": 1_700_000_000_123, "step": 3, "host_memory_bytes": 2e9, "cpu_share": 0.5}
    path = training.folder / "system.jsonl"
    path.write_text(json.dumps(row) + "\n")
    sender = training.sender(mlflow_server)
    sender.deliver()
    with path.open("a") as file:
        file.write(json.dumps({**row, "time": row["time"] + 10_000, "step": 9}) + "\n")
    training.sender(mlflow_server).deliver()
    run_id = training.run(client).info.run_id
    points = client.get_metric_history(run_id, "system/host_memory_bytes")
    assert [(point.timestamp, point.step) for point in points] == [(row["time"], 3), (row["time"] + 10_000, 9)]
    assert not client.get_metric_history(run_id, "system/time")


def test_server_that_never_answers_ends_the_sender_in_bounded_time(training, monkeypatch):
    slept = []
    clock = [0.0]

    def sleep(seconds):
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(sender_module, "time", type("Time", (), {"monotonic": lambda: clock[0], "sleep": sleep}))
    sender = training.sender("http://127.0.0.1:9", closing=4.0, every=2.0)
    monkeypatch.setattr(Sender, "deliver", lambda self: (_ for _ in ()).throw(ConnectionError("connection refused")))
    training.write([1])
    deliver_until_ended(sender, inbox("finish"))
    assert sum(slept) <= 4.0 and len(slept) >= 3
    (fault,) = [value for event, value in training.events if event == "fault"]
    assert "http://127.0.0.1:9: no MLflow server answers" in fault


def test_waits_grow_while_the_server_is_away(training, monkeypatch):
    waits = []

    class Inbox:
        def get_nowait(self):
            raise queue.Empty

        def get(self, timeout):
            waits.append(timeout)
            if len(waits) == 7:
                raise KeyboardInterrupt
            raise queue.Empty

    monkeypatch.setattr(Sender, "deliver", lambda self: (_ for _ in ()).throw(ConnectionError("connection refused")))
    with pytest.raises(KeyboardInterrupt):
        deliver_until_ended(training.sender("http://127.0.0.1:9", every=2.0), Inbox())
    assert waits == [4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
