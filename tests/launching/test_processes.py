"""Training in several processes: results come back, failures are told by their cause, and no process stays behind."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from ava_core.config import resolve
from ava_core.config.hosts import read_hostfile, world_size
from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.launching import launch, processes
from ava_core.launching.workers import train_in_processes
from ava_core.progress import Progress
from ava_core.training.request import TrainRequest

FAKE = "tests.launching.fake_worker"
SLOW = pytest.mark.slow
SECONDS = 200.0
"""How long a test waits for a process to end; it would wait 600 without what is tested."""


@pytest.fixture
def make_request(tmp_path, make_params):
    def make(threads=2, state=tmp_path, **train):
        config = resolve(params=make_params(train=train)).config
        return TrainRequest(
            model_config=config.model,
            train_config=config.train,
            seed=0,
            shards=tmp_path / "shards",
            output=tmp_path / "output",
            state=state,
            threads=threads,
        )

    return make


@pytest.fixture
def run(tmp_path, make_request, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 1.0)

    def call(*acts, threads=5, **train):
        (tmp_path / "acts.json").write_text(json.dumps(acts))
        result = train_in_processes(make_request(threads, processes=len(acts), **train), quiet=True, module=FAKE)
        return asdict(result)

    return call


def test_result_of_rank_0_comes_back(run, tmp_path, capfd):
    assert run("", "") == {"metrics": {"threads": 2, "size": 2}, "timings": {"omp": 2.0}}
    assert "rank 0 speaks" in capfd.readouterr().out  # rank 0 writes to the terminal, the other to its log
    assert "rank 1 speaks" in (tmp_path / "processes" / "rank-1.log").read_text()
    assert run("", "", threads=1)["metrics"]["threads"] == 1


@pytest.mark.parametrize(
    ("acts", "kind", "message"),
    [
        (("wait", "kill"), AvaError, "the training process of rank 1 was killed by SIGKILL: run the same command"),
        pytest.param(
            ("wait", "exit"), AvaError, "the training process of rank 1 ended with exit code 7 (log: ", marks=SLOW
        ),
        (("defect", "wait"), AvaError, "the training process of rank 0 failed: KeyError: 'weights'"),
        (("wait", "linger"), AvaError, "rank 1: the loss is no finite number"),
        pytest.param(("ignore", "integrity"), IntegrityError, "shards/x: its bytes differ", marks=SLOW),
        pytest.param(("lost", "kill"), AvaError, "the training process of rank 1 was killed by SIGKILL", marks=SLOW),
        pytest.param(("lost", "exit"), AvaError, "the training process of rank 1 ended with exit", marks=SLOW),
    ],
)
def test_cause_of_a_failure_is_told_and_the_others_end(run, tmp_path, acts, kind, message):
    with pytest.raises(kind) as caught:
        run(*acts)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    _assert_gone(tmp_path, 2)


def test_refusal_of_a_worker_keeps_its_lines_and_exit_code(run):
    with pytest.raises(ConfigError) as caught:
        run("config", "wait")
    assert caught.value.faults == ("train.a = 1: must be 2", "train.b = 3: must be 4")
    assert caught.value.exit_code == 2


def test_earlier_failure_and_result_are_forgotten(run, tmp_path):
    with pytest.raises(ConfigError):
        run("config", "config")
    assert run("", "")["metrics"]["size"] == 2
    with pytest.raises(AvaError, match="rank 0 was killed"):
        run("kill", "wait")
    assert not (tmp_path / "processes" / "result.json").exists()


def test_more_processes_than_cores_are_refused_before_the_first_step(tmp_path, make_request, monkeypatch):
    monkeypatch.setattr("ava_core.distributed.group.usable_cores", lambda: 1)
    with pytest.raises(ConfigError, match=r"^train\.processes = 2: this machine has 1 "):
        launch.launch(make_request(state=tmp_path / "state", processes=2), Progress(quiet=True))
    assert not (tmp_path / "state").exists()


PARENT = """
import sys
from pathlib import Path
from ava_core.config.model import ModelConfig
from ava_core.config.train import TrainConfig
from ava_core.interruption import handle_signals
from ava_core.launching import processes
from ava_core.launching.workers import train_in_processes
from ava_core.training.request import TrainRequest

handle_signals()
processes.PATIENCE_SECONDS = 1.0
state = Path(sys.argv[1])
request = TrainRequest(
    model_config=ModelConfig(),
    train_config=TrainConfig(processes=2, micro_batch_size=1),
    seed=0,
    shards=state / "shards",
    output=state / "output",
    state=state,
    threads=2,
)
train_in_processes(request, quiet=True, module="tests.launching.fake_worker")
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_no_process_outlives_ava(tmp_path, number, code):
    (tmp_path / "acts.json").write_text(json.dumps(["wait", "ignore"]))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    _wait_for(lambda: all((tmp_path / f"pid-{rank}").exists() for rank in range(2)))
    parent.send_signal(number)
    assert parent.wait(SECONDS) == code
    _assert_gone(tmp_path, 2)


def test_workers_lose_the_variables_of_the_launcher_around_them(monkeypatch):
    for name in ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RANK", "0")
    environment = processes.rank_environment(1, 2, 1234)
    assert not [name for name in environment if name.startswith("OMPI_")]
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_WORLD_SIZE"]) == ("1", "2", "2")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "names no machine"),
        ("# only a comment\n", "names no machine"),
        ("one slots=2\ntwo\n", "line 2: 'two': must be `HOST slots=N`"),
        ("one slots=2\n\none slots=1\n", "line 3: one is there twice"),
        ("one slots=two\n", "line 1"),
        ("one slots=" + "9" * 5000, "characters): must be `HOST slots=N`"),
        ("# \n" * 400_000, "has more than 1,048,576 bytes"),
    ],
)
def test_faulty_hostfile_is_refused(tmp_path, text, fault):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ConfigError, match="hosts") as caught:
        read_hostfile(path)
    assert fault in str(caught.value)


def test_processes_of_all_machines_are_counted(tmp_path, make_params):
    path = tmp_path / "hosts"
    path.write_text("# two machines\none slots=2\ntwo slots=4 # big\n")
    assert read_hostfile(path) == {"one": 2, "two": 4}

    def config(**train):
        return resolve(params=make_params(train={"global_batch_size": 8, **train})).config.train

    assert world_size(config(processes=2)) == 2
    assert world_size(config(processes=2, hostfile=str(path))) == 4
    with pytest.raises(ConfigError, match=r"train\.processes = 4: .* gives one slots=2"):
        world_size(config(processes=4, hostfile=str(path)))
    with pytest.raises(ConfigError, match=r"train\.global_batch_size = 4: .* 2 x 2 x 2"):
        world_size(config(processes=2, hostfile=str(path), global_batch_size=4))
    with pytest.raises(ConfigError, match=r"train\.hostfile = .*nowhere: can't be read"):
        world_size(config(hostfile=str(tmp_path / "nowhere")))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hostfile_with_this_machine_goes_through_deepspeed(run, tmp_path):
    path = tmp_path / "hosts"
    path.write_text("localhost slots=2\n")

    def call(*acts):
        return run(*acts, threads=2, hostfile=str(path))

    assert call("", "")["metrics"] == {"threads": 1, "size": 2}
    with pytest.raises(ConfigError, match=r"train\.a = 1"):
        call("wait", "config")
    _assert_gone(tmp_path, 2)
    with pytest.raises(AvaError, match="launcher ended with exit code"):
        call("wait", "kill")
    _assert_gone(tmp_path, 2)


def _assert_gone(state, processes):
    for rank in range(processes):
        path = state / f"pid-{rank}"
        if path.exists():  # it may have been ended before it came so far
            pid = int(path.read_text())
            _wait_for(lambda pid=pid: not _alive(pid))
            path.unlink()


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
