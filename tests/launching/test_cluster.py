"""TrainJobs on a cluster that is played by a server of the tests; see `fake_cluster`."""

import re
import threading
import time

import pytest

from ava_core.errors import AvaError, ConfigError

kubeflow = pytest.importorskip("kubeflow", reason="the package kubeflow is not installed")
from ava_core.launching import cluster as module  # noqa: E402
from ava_core.launching import log_stream  # noqa: E402

LINES = [
    "12:00:00 INFO    train: 1,000 parameters, 6 steps of 256 tokens",
    "12:00:01 INFO    train  50%  loss 5.10  ETA 1 s",
    "12:00:02 WARNING expert 3 gets no tokens",
]


def succeed(cluster):
    def controller(name):
        cluster.start_pods(name)
        cluster.log(name, *LINES)
        cluster.end(name)

    return controller


def test_job_is_started_followed_and_removed(cluster, make_job, run_job, caplog):
    cluster.on_create = succeed(cluster)
    job = make_job()
    run_job(job)
    assert [body["metadata"]["name"] for body in cluster.created] == [job.name] == cluster.deleted
    assert cluster.jobs == {}
    shown = [(record.levelname, record.message) for record in caplog.records]
    assert ("INFO", "train: 1,000 parameters, 6 steps of 256 tokens") in shown
    assert ("WARNING", "expert 3 gets no tokens") in shown


def test_lines_come_while_the_job_runs(cluster, make_job, run_job, caplog):
    seen_before_the_end = threading.Event()

    def controller(name):
        cluster.start_pods(name)
        cluster.log(name, "first line")
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and "first line" not in caplog.text:
            time.sleep(0.02)
        if "first line" in caplog.text:
            seen_before_the_end.set()
        cluster.end(name)

    cluster.on_create = controller
    run_job(make_job())
    assert seen_before_the_end.is_set()


def test_log_goes_on_after_its_connection_was_cut_and_no_line_comes_twice(cluster, make_job, run_job, caplog):
    def controller(name):
        cluster.start_pods(name)
        cluster.log(name, "line 1", "line 2")
        while "line 2" not in caplog.text:
            time.sleep(0.02)
        cluster.cut_log(name)
        cluster.log(name, "line 3")
        while "line 3" not in caplog.text:
            time.sleep(0.02)
        cluster.end(name)

    cluster.on_create = controller
    run_job(make_job())
    assert [record.message for record in caplog.records if record.message.startswith("line")] == [
        "line 1",
        "line 2",
        "line 3",
    ]


def test_quiet_shows_no_progress(cluster, make_job, run_job, caplog):
    cluster.on_create = succeed(cluster)
    run_job(make_job(), quiet=True)
    assert "50%" not in caplog.text
    assert "expert 3" in caplog.text


def test_failure_names_reason_exit_code_and_what_ava_said_first(cluster, make_job, run_job):
    def controller(name):
        cluster.start_pods(name)
        cluster.log(name, *LINES, "ava: loss = nan at step 3: lower train.learning_rateava: rank 2 lost rank 1")
        cluster.log(name, "ava: rank 1 lost the connection to another process of the training")
        cluster.log(name, "-" * 60, "mpirun detected that one or more processes exited with non-zero status")
        codes = {f"{name}-launcher-0-0": (1, "Error")}
        cluster.end(name, "Failed", "FailedJobs", "jobset failed due to one or more job failures", codes)

    cluster.on_create = controller
    job = make_job()
    with pytest.raises(AvaError) as failure:
        run_job(job)
    message = str(failure.value)
    assert "\n" not in message
    assert f"team/{job.name} failed; FailedJobs: jobset failed due to one or more job failures" in message
    assert f"{job.name}-launcher-0-0: exit code 1" in message
    assert message.endswith("its log ends: loss = nan at step 3: lower train.learning_rate")
    assert failure.value.exit_code == 1
    assert cluster.deleted == [job.name]


def test_machine_that_ran_out_of_memory_is_named(cluster, make_job, run_job):
    def controller(name):
        cluster.start_pods(name)
        codes = {f"{name}-node-0-0": (137, "OOMKilled"), f"{name}-launcher-0-0": (1, "Error")}
        cluster.end(name, "Failed", "FailedJobs", "a job failed", codes)

    cluster.on_create = controller
    job = make_job()
    with pytest.raises(AvaError, match=rf"{job.name}-node-0-0: exit code 137 \(OOMKilled\)"):
        run_job(job)


def test_configuration_that_the_training_refuses_ends_with_its_exit_code(cluster, make_job, run_job):
    def controller(name):
        cluster.start_pods(name)
        cluster.log(name, "ava: train.processes = 8: this machine has 2 usable cores and no GPU")
        cluster.end(name, "Failed", "FailedJobs", "", {f"{name}-launcher-0-0": (2, "Error")})

    cluster.on_create = controller
    with pytest.raises(ConfigError, match=r"train\.processes = 8"):
        run_job(make_job())


def test_deadline_of_the_controller_is_a_failure(cluster, make_job, run_job):
    def controller(name):
        cluster.start_pods(name)
        cluster.end(name, "Failed", "DeadlineExceeded", "TrainJob exceeded its deadline")

    cluster.on_create = controller
    with pytest.raises(AvaError, match="DeadlineExceeded: TrainJob exceeded its deadline"):
        run_job(make_job())


def test_job_that_no_controller_stops_is_stopped_here(cluster, make_job, run_job, monkeypatch):
    monkeypatch.setattr(module, "DEADLINE_SLACK_SECONDS", 0.3 - 60)
    job = make_job(train_job={"timeout_minutes": 1})
    with pytest.raises(AvaError, match=r"didn't end within kubernetes\.train_job\.timeout_minutes = 1"):
        run_job(job)
    assert cluster.created[0]["spec"]["activeDeadlineSeconds"] == 60
    assert cluster.deleted == [job.name]


def test_running_job_of_the_same_name_is_followed_and_not_started_twice(cluster, make_job, run_job, caplog):
    job = make_job()
    cluster.create({**_body(cluster, job, run_job), "status": {}})
    cluster.created.clear()
    cluster.start_pods(job.name)
    threading.Timer(0.3, lambda: (cluster.log(job.name, "from the first one"), cluster.end(job.name))).start()
    run_job(job)
    assert cluster.created == []
    assert "is running already: following it" in caplog.text
    assert "from the first one" in caplog.text


def test_of_two_that_start_at_the_same_time_one_follows(cluster, make_job, run_job, caplog):
    job = make_job()
    body = _body(cluster, job, run_job)
    read, first = cluster.read, []

    def read_late(name):  # the other one creates its job between our look and our creation
        answer = read(name)
        if not first:
            first.append(answer)
            cluster.on_create = succeed(cluster)
            cluster.create(body)
        return answer

    cluster.read = read_late
    cluster.created.clear()
    run_job(job)
    assert len(cluster.created) == 1
    assert "just been started by someone else" in caplog.text


@pytest.mark.parametrize("condition", ["Complete", "Failed"])
def test_ended_job_of_an_earlier_attempt_is_removed_before_its_successor_starts(cluster, make_job, run_job, condition):
    job = make_job()
    cluster.create(_body(cluster, job, run_job))
    cluster.start_pods(job.name)
    cluster.end(job.name, condition)
    cluster.created.clear()
    cluster.requests.clear()
    cluster.lingering = 3
    cluster.on_create = succeed(cluster)
    run_job(job)
    writes = [method for method, _ in cluster.requests if method != "GET"]
    assert writes == ["DELETE", "POST", "DELETE"]
    assert len(cluster.created) == 1


def test_job_that_someone_deletes_is_no_success(cluster, make_job, run_job):
    def controller(name):
        cluster.start_pods(name)
        cluster.delete(name)

    cluster.on_create = controller
    with pytest.raises(AvaError, match="was deleted by someone else"):
        run_job(make_job())


def test_cluster_that_is_away_for_a_while_is_asked_again(cluster, make_job, run_job, caplog):
    def controller(name):
        cluster.start_pods(name)
        cluster.faults = [500, 503, 429]
        while cluster.faults:
            time.sleep(0.02)
        cluster.end(name)

    cluster.on_create = controller
    run_job(make_job())
    assert "the cluster doesn't answer (made to fail with 503)" in caplog.text


def test_job_stays_when_the_cluster_is_lost(cluster, make_job, run_job, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.3)
    job = make_job()

    def controller(name):
        cluster.start_pods(name)
        cluster.faults = [503] * 200

    cluster.on_create = controller
    with pytest.raises(module.Unreachable, match="goes on; the same command follows it again"):
        run_job(job)
    assert cluster.deleted == []
    assert job.name in cluster.jobs


def test_interruption_removes_the_job(cluster, make_job, run_job, monkeypatch):
    def controller(name):
        cluster.start_pods(name)
        cluster.log(name, "a line")

    def interrupted(self, line):
        raise KeyboardInterrupt

    cluster.on_create = controller
    monkeypatch.setattr(log_stream.Shown, "show", interrupted)
    job = make_job()
    with pytest.raises(KeyboardInterrupt):
        run_job(job)
    assert cluster.deleted == [job.name]


def test_why_machines_are_waited_for_is_shown(cluster, make_job, run_job, caplog):
    def controller(name):
        cluster.start_pods(name, phase="Pending")
        cluster.event(f"{name}-launcher-0-0", "FailedScheduling", "0/3 nodes are available: 3 Insufficient cpu.")
        while "Insufficient cpu" not in caplog.text:
            time.sleep(0.02)
        cluster.start_pods(name)
        cluster.end(name)

    cluster.on_create = controller
    run_job(make_job())
    lines = [record.message for record in caplog.records if "Insufficient cpu" in record.message]
    assert len(lines) == 1
    assert "FailedScheduling" in lines[0]


def test_missing_runtime_says_how_to_make_it(cluster, make_job, run_job):
    job = make_job(train_job={"runtime": "other"})
    with pytest.raises(ConfigError, match=r"train_job\.runtime = other: .*launching\.runtime --image"):
        run_job(job)
    assert cluster.created == []


def test_refusal_by_the_cluster_is_told_in_its_words(cluster, make_job, run_job, monkeypatch):
    monkeypatch.setattr(cluster, "create", lambda body: (422, {"message": "admission webhook denied: too many nodes"}))
    with pytest.raises(ConfigError, match=r"doesn't take the TrainJob .*: admission webhook denied: too many nodes"):
        run_job(make_job())


def test_lack_of_permission_ends_at_once(cluster, make_job, run_job):
    cluster.faults = [403]
    with pytest.raises(AvaError, match="the cluster doesn't show TrainJobs of team: made to fail with 403"):
        run_job(make_job())


def test_without_a_cluster_the_way_out_is_named(make_job, tmp_path, monkeypatch):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    from ava_core.launching.cluster import Cluster

    with pytest.raises(ConfigError, match=r"no cluster: .*: set KUBECONFIG, or start this in a pod"):
        Cluster(make_job().kubernetes.train_job)


def test_cluster_that_never_answered_is_not_waited_for(cluster, make_job, run_job):
    cluster.faults = [503] * 10
    with pytest.raises(AvaError, match=r"the cluster doesn't answer \(made to fail with 503\)"):
        run_job(make_job())
    assert len(cluster.requests) < 5


def test_names_that_kubernetes_derives_fit(make_job):
    assert len(f"{make_job().name}-launcher-0-0-abcde") <= 63
    assert re.fullmatch(r"[a-z][-a-z0-9]*", make_job().name)


def _body(cluster, job, run_job):
    """The body of the request that creates the job."""
    cluster.on_create = succeed(cluster)
    run_job(job)
    cluster.on_create = lambda name: None
    return cluster.created.pop()
