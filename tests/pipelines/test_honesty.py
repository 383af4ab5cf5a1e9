"""A step that breaks its promise fails the run, wherever it runs: nothing that went wrong is reported as done.

On the host and in a container: a plain non-zero exit, a death by SIGKILL (as the kernel's for memory), a
missing output, corrupt metrics, a hang past the time it is allowed. kfp.local's own DockerRunner reports the first as
success.
"""

import json

import pytest

from pipelines import summary
from tests.pipelines.conftest import EXECUTORS

OUTPUTS = {
    "preprocess": "shards",
    "train": "model",
    "quantize-int8": "quantized",
    "quantize-int4": "quantized",
    "evaluate": "evaluation",
    "gate": "gate",
    "register": "registration",
}
TIMEOUT = 4.0
FAULTS = {
    "exit code": "exit code 3: ava: train.learning_rate is too large",
    "signal": "SIGKILL (out of memory?): ",
    "no output": "its output {output} is missing: ",
    "metric is NaN": "its metrics are corrupt: loss = nan: not a finite number",
    "hang": f"timed out after {TIMEOUT:g} s: hanging",
}


CASES = [("host", step, fault) for step in OUTPUTS for fault in FAULTS]
# A container takes seconds: each fault in one step, and one fault in each.
CASES += [
    pytest.param("docker", step, fault, marks=pytest.mark.slow)
    for step in OUTPUTS
    for fault in FAULTS
    if step == "train" or fault == "exit code"
]


@pytest.mark.parametrize(("fake", "step", "fault"), CASES, indirect=["fake"])
def test_broken_promise_of_a_step_is_a_failure_of_that_step(fake, step, fault):
    result = fake.run(f"{step}={fault}", timeouts={step: TIMEOUT} if fault == "hang" else {})
    assert not result.succeeded and result.fault
    assert result.failed.name == step
    assert result.failed.fault.startswith(FAULTS[fault].format(output=OUTPUTS[step])), result.failed.fault
    assert any(line.startswith(f"{step}: failed: ") for line in fake.lines)

    # What depends on the step didn't run, but for the exit handler, which ran last and knows.
    below = fake.graph.from_on({step}) - {step, "record-outcome"}
    assert below.isdisjoint(fake.called) and set(result.skipped) == below
    assert fake.called[-1] == "record-outcome"
    assert json.loads(fake.journal[-1]["flags"]["status"])["state"] == "FAILED"

    told = "\n".join(summary.failure(result, "the same command"))
    assert told.startswith(f"{step} failed: ") and f"    {step} at work" in told and "the same command" in told


@pytest.mark.parametrize("fake", EXECUTORS, indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_of_a_failed_step_is_taken_by_the_next_run(fake, fault):
    failed = fake.run(f"train={fault}", timeouts={"train": TIMEOUT} if fault == "hang" else {})
    calls = len(fake.called)
    result = fake.run()
    assert result.succeeded and not any(task.cached for task in result.tasks)
    assert len(fake.called) == calls + len(fake.graph.order)
    old = str(failed.failed.folder.parent)
    assert not any(old in word for entry in fake.journal[calls:] for word in entry["flags"].values())


@pytest.mark.slow
def test_failed_containers_are_removed_like_the_others(docker, containers):
    for fault in FAULTS:
        docker.run(f"train={fault}", timeouts={"train": TIMEOUT})
    assert containers(docker) == []


OTHER_FAULTS = [
    ("silent success", "train", "wrote no executor_output.json"),
    ("no executor output", "train", "wrote no executor_output.json"),
    ("torn executor output", "train", "executor_output.json can't be read"),
    ("executor output of another kind", "train", "executor_output.json can't be read"),
    ("no address", "train", "gives no address for model"),
    ("unlisted output", "train", "lists no model"),
    ("output that nobody asked for", "train", "lists other, which the component doesn't have"),
    ("no metrics", "train", "its metrics are empty"),
    ("metric is text", "train", "its metrics are corrupt: loss"),
    ("torn metrics.json", "train", "its output model is corrupt: metrics.json"),
    ("no report", "evaluate", "its output report is missing"),
    ("curve is NaN", "evaluate", "its classification are corrupt: confidenceMetrics.0.recall"),
    ("no parameter", "register", "its output parameter promoted is missing"),
    ("broken parameter", "register", "its output parameter promoted = 'perhaps'"),
    ("parameter of another type", "register", "its output parameter model_version"),
]


@pytest.mark.parametrize(("fault", "step", "line"), OTHER_FAULTS, ids=[f"{step}: {it}" for it, step, _ in OTHER_FAULTS])
def test_output_that_is_not_what_the_component_promises_fails_the_step(host, fault, step, line):
    result = host.run(f"{step}={fault}")
    assert not result.succeeded and result.failed.name == step and line in result.failed.fault
