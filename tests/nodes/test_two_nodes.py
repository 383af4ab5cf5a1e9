"""A TrainJob's command, image and environment on two machines: the curve of one, and what the loss of one does.

The machines are containers (`cluster`); on Kubernetes the same runs in pods. Gloo, CPU, float32, AdamW: each rank
passes the same micro-batches as one process does, so that only the order of sums differs.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ava_core.runtime.digests import digest_tree
from tests.conftest import TINY_PARAMS, merged
from tests.nodes import cluster as clusters
from tests.nodes.cluster import SHARED, Cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TOLERANCE = 1e-5
"""Nats per token between one node and two (seen: 4e-7)."""
JOB_SECONDS = 300.0
KILLED_SECONDS = 30.0
"""After the death of a node's processes the job has failed."""
VANISHED_SECONDS = 90.0
"""After a node has gone without closing its connections the job has failed."""
STEPS, EVERY, KEPT = 60, 5, 20
"""Steps of a training, between its checkpoints, and of the checkpoint that outlives it."""
LOSS_AFTER = 20
"""Steps that are done when a node is lost."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, tiny_shards):
    if reason := clusters.unavailable():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("nodes") / "cluster") as made:
        shutil.copytree(tiny_shards, made.shared / "shards")
        clusters.open_to_image(made.shared)
        yield made


class Training:
    """One training on the cluster: where its work and output are, and its command."""

    def __init__(self, cluster: Cluster, name: str, stage: int, ranks: int) -> None:
        self.cluster, self.name, self.ranks = cluster, name, ranks
        self.output = cluster.shared / name / "model"
        changes = {
            "model": {"balance_loss_weight": 0.0},
            "train": {
                **{"processes": ranks, "zero_stage": stage, "steps": STEPS, "evaluate_every": 10},
                **{"checkpoint_every": EVERY, "keep_checkpoint_every": KEPT, "precision": "fp32"},
                **{"micro_batch_size": 1, "optimizer": "adamw", "learning_rate": 0.002},
            },
        }
        self.params = yaml.safe_dump(merged(TINY_PARAMS, changes))

    def start(self, nodes, resume: Path | None = None):
        folder = self.output.parent
        folder.mkdir(exist_ok=True)
        clusters.open_to_image(folder)
        arguments = ["train", "--params-yaml", self.params, "--shards", str(SHARED / "shards")]
        arguments += ["--output", str(SHARED / self.name / "model"), "--work", str(SHARED / self.name / "work")]
        if resume:
            arguments += ["--resume", str(SHARED / resume.relative_to(self.cluster.shared))]
        return self.cluster.start_job(arguments, nodes)

    def finish(self, nodes, resume: Path | None = None) -> str:
        """Run it to its end; what it has printed."""
        ended = self.start(nodes, resume).wait(JOB_SECONDS)
        assert ended.code == 0, ended.printed
        return ended.printed

    def lose(self, nodes, lose, seconds: float) -> str:
        """Start it, lose a machine in the middle, and see it fail in time; what it has printed."""
        job = self.start(nodes)
        wait_for(lambda: self._steps_done() >= LOSS_AFTER, JOB_SECONDS, job.printed)
        lose()
        ended = job.wait(seconds)
        print(f"{self.name}: failed {ended.seconds:.1f} s after the loss:\n{ended.printed}")
        assert ended.code != 0
        assert not self.output.exists()
        return ended.printed

    def checkpoints(self) -> Path:
        """A copy of what the last run has left."""
        copy = self.output.parent / "checkpoints"
        shutil.copytree(self._state() / "checkpoints", copy, ignore=shutil.ignore_patterns("*.partial"))
        return copy

    def kept(self) -> Path:
        """The checkpoints that outlive a training."""
        return next(self.output.parent.glob("work/train/*/kept/checkpoints"))

    def _state(self) -> Path:
        return next(self.output.parent.glob("work/train/*/state"), self.output)

    def _steps_done(self) -> int:
        history = self._state() / "history.jsonl"
        return history.read_text().count("\n") if history.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(cluster):
    """A training on so many nodes, finished; each is run once."""
    known: dict[tuple[int, int], Training] = {}

    def of(stage: int, ranks: int) -> Training:
        if (stage, ranks) not in known:
            known[stage, ranks] = Training(cluster, f"whole-{stage}-{ranks}", stage, ranks)
            known[stage, ranks].finish([cluster.start_node(number) for number in range(ranks - 1)])
        return known[stage, ranks]

    return of


def rows(training: Training) -> list[dict]:
    return [json.loads(line) for line in (training.output / "history.jsonl").read_text().splitlines()]


def last_step(checkpoints: Path) -> int:
    return max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))


def assert_same_curve(found: list[dict], expected: list[dict]) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("train_loss", "validation_loss"):
        ours, theirs = ([row[name] for row in some if name in row] for some in (found, expected))
        assert ours == pytest.approx(theirs, abs=TOLERANCE), name


@pytest.mark.parametrize("stage", [1, 3])
def test_two_nodes_give_the_loss_curve_of_one(undisturbed, stage):
    one, two = (rows(undisturbed(stage, ranks)) for ranks in (1, 2))
    assert len(one) == STEPS
    assert one[-1]["train_loss"] < one[0]["train_loss"] - 0.5  # a flat curve would prove nothing
    assert_same_curve(two, one)


def test_job_with_a_killed_node_fails_at_once_and_the_same_command_ends_with_the_same_bytes(cluster, undisturbed):
    node = cluster.start_node(0)
    training = Training(cluster, "killed", stage=1, ranks=2)
    printed = training.lose([node], lambda: cluster.kill(node), KILLED_SECONDS)
    assert node in printed
    last = last_step(training.checkpoints())
    assert LOSS_AFTER - 2 * EVERY <= last < STEPS  # the newest may not have been whole
    printed = training.finish([cluster.start_node(0)])
    assert f"going on from the checkpoint of step {last}" in printed
    assert digest_tree(training.output) == digest_tree(undisturbed(1, 2).output)


def test_job_with_a_vanished_node_fails_in_time_and_goes_on_with_the_other_one_alone(cluster, undisturbed):
    node = cluster.start_node(0)
    training = Training(cluster, "vanished", stage=3, ranks=2)
    printed = training.lose([node], lambda: cluster.cut_off(node), VANISHED_SECONDS)
    assert f"rank 1 on {node} has given no sign of life" in printed
    cluster.kill(node)
    checkpoints = training.checkpoints()
    alone = Training(cluster, "alone", stage=3, ranks=1)
    alone.finish([], resume=checkpoints)
    assert_same_curve(rows(alone), rows(undisturbed(3, 1))[last_step(checkpoints) :])


def test_training_of_one_node_goes_on_with_two(cluster, undisturbed):
    checkpoint = undisturbed(1, 1).kept() / f"step-{KEPT:08d}"
    two = Training(cluster, "joined", stage=1, ranks=2)
    two.finish([cluster.start_node(0)], resume=checkpoint)
    assert_same_curve(rows(two), rows(undisturbed(1, 1))[KEPT:])
