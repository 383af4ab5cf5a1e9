"""What a training really takes is held against plan and budget, and never past them in silence."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ava_core.config.hardware import GIB
from ava_core.distributed.ranks import Ranks
from ava_core.training.memory.plan import MemoryPlan
from ava_core.training.memory.watch import MemoryWatch
from tests.training.memory.test_memory import make_model, settings

PLAN = MemoryPlan(layers_recomputed=(), parts={"process": GIB, "activations": GIB})


@pytest.fixture
def watch_run(caplog):
    """The warnings, step by step, of a training whose peaks are given in GiB; the first is from before it."""
    caplog.set_level("WARNING")

    def call(*peaks, ranks=None, recomputing=0, **fields):
        caplog.clear()
        model = make_model(3)
        for layer in model.model.layers[:recomputing]:
            layer.gradient_checkpointing = True
        run = SimpleNamespace(config=settings(**fields), ranks=ranks or Ranks(), model=model)
        sizes = iter(round(peak * GIB) for peak in peaks)
        watch = MemoryWatch(PLAN, measure=lambda: next(sizes))
        watch.on_start(run)
        for step in range(1, len(peaks)):
            watch.after_step(run, {"step": step})
        return caplog.messages, [layer.gradient_checkpointing for layer in model.model.layers]

    return call


def test_training_that_keeps_to_its_plan_is_told_nothing(watch_run):
    assert watch_run(1.0, 1.5, 2.0, 2.2, memory_budget=2.5)[0] == []


def test_more_than_planned_is_told_once_with_figures_and_what_to_lower(watch_run):
    (line,), recomputing = watch_run(1.0, 2.1, 3.6, 3.7)
    assert line == (
        "memory: 3.60 GiB taken by step 2, 2.00 estimated: to take less, lower train.micro_batch_size (now 2) or"
        " train.sequence_length (now 64)"
    )
    assert recomputing == [False] * 3


def test_what_was_taken_before_the_first_step_is_no_fault_of_the_training(watch_run):
    assert watch_run(9.0, 9.0, 9.0, memory_budget=2.0)[0] == []


def test_past_its_budget_every_layer_recomputes_and_a_second_line_tells_if_that_was_not_enough(watch_run):
    (first, second), recomputing = watch_run(1.0, 1.9, 3.4, 3.4, 3.5, 3.6, memory_budget=2.0, recomputing=1)
    assert first == (
        "memory: train.memory_budget = 2 GiB is exceeded: 3.40 GiB taken by step 2, 2.00 estimated: from now on all 3"
        " layers recompute instead of 1: to take less, lower train.micro_batch_size (now 2) or train.sequence_length"
        " (now 64)"
    )
    assert second.startswith(
        "memory: train.memory_budget = 2 GiB is exceeded: 3.50 GiB taken by step 4, 2.00 estimated"
    )
    assert second.endswith("lower train.micro_batch_size (now 2) or train.sequence_length (now 64)")
    assert recomputing == [True] * 3


def test_one_of_several_processes_does_not_recompute_other_layers_than_the_others(watch_run):
    (line,), recomputing = watch_run(1.0, 3.4, 3.6, memory_budget=2.0, ranks=Ranks(rank=1, size=2))
    assert "is exceeded: 3.40 GiB taken by step 1" in line and "lower train.micro_batch_size" in line
    assert recomputing == [False] * 3


@pytest.mark.slow
def test_peak_is_not_that_of_the_program_that_started_this_one():
    held = b"x" * (1 << 30)
    program = "from ava_core.training.process import peak_memory_bytes as peak; print(peak())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < len(held)


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False])
def test_long_sequences_take_what_was_planned(native, tmp_path, tiny_shards, make_params):
    """At 4096 tokens and a micro-batch of 2 the plan said half of what was taken."""
    sizes = {"sequence_length": 4096, "micro_batch_size": 2, "global_batch_size": 2, "steps": 2, "warmup_steps": 1}
    params = make_params(
        model={"max_position_embeddings": 4096, "num_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        train={**sizes, "precision": "bf16", "evaluate_sequences": 1},
    )
    program = (
        "import sys\nfrom ava_core.models import attention\n"
        + ("" if native else "attention._native_can = lambda *_: False\n")
        + "from ava_core.cli import main\nsys.argv[0] = 'ava'\nmain.main()\n"
    )
    flags = ["--params", params, "--shards", tiny_shards, "--output", tmp_path / "model", "--work", tmp_path / "work"]
    command = [sys.executable, "-c", program, "train", *map(str, flags), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr
    taken = json.loads((tmp_path / "model.timings.json").read_text())["peak_memory_bytes"]
    (line,) = [line for line in done.stderr.splitlines() if "GiB at the peak" in line]
    planned = float(line.rpartition(", ")[2].removesuffix(" estimated")) * GIB
    assert 0.7 < taken / planned < 1.3
    assert "to take less" not in done.stderr
