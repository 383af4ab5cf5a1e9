"""Allocation failures: recognised, freed, and without influence on the result."""

import copy
import logging
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch

from ava_core.config.train import TrainConfig
from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.memory.out_of_memory import MicroBatch, OutOfMemory, raises_out_of_memory, until_it_fits

ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    " 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
)


def settings(micro=4, whole=8, **fields):
    return TrainConfig(micro_batch_size=micro, global_batch_size=whole, **fields)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError(ON_CPU),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_what_allocators_raise_is_recognised(error):
    with pytest.raises(OutOfMemory) as caught, raises_out_of_memory():
        raise error
    assert str(caught.value) == (str(error) or "out of memory")
    assert error.__traceback__ is None  # it would hold the step's frames


def test_a_real_request_for_too_much_is_recognised():
    with pytest.raises(OutOfMemory, match="allocate"), raises_out_of_memory():
        torch.empty(2**46, dtype=torch.uint8)


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), KeyError("x"), AvaError("memory")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, raises_out_of_memory():
        raise error
    assert caught.value is error


def test_tensors_of_the_failed_step_are_free_before_anybody_catches():
    alive = []

    def step():
        activation = torch.zeros(10)
        alive.append(weakref.ref(activation))
        raise RuntimeError(ON_CPU)

    with pytest.raises(OutOfMemory), raises_out_of_memory():
        step()
    assert alive[0]() is None


def test_nothing_of_an_attempt_is_left_when_the_next_one_begins(tmp_path):
    engines = []

    class Engine:
        def __init__(self):
            self.itself = self  # as a real one, in a cycle

    def run(config):
        assert all(engine() is None for engine in engines)
        engine = Engine()
        engines.append(weakref.ref(engine))
        with raises_out_of_memory():
            if config.micro_batch_size > 1:
                raise MemoryError
        return config.micro_batch_size

    assert until_it_fits(MicroBatch(settings(4), tmp_path), run) == 1
    assert len(engines) == 3


def test_size_halves_at_the_same_global_batch_is_told_and_survives_the_process(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    sizes = MicroBatch(settings(4, 8, processes=2), tmp_path)
    assert sizes.size == 4
    sizes.halve("no room")
    assert "no room" in caplog.text and "micro_batch_size = 2 instead of 4, and 2 passes" in caplog.text
    again = MicroBatch(settings(4, 8, processes=2), tmp_path)
    assert again.size == 2
    assert again.configured() == settings(2, 8, processes=2)


def test_odd_sizes_go_to_their_largest_divisor_so_that_batches_still_divide(tmp_path):
    sizes = MicroBatch(settings(15, 45), tmp_path)
    sizes.halve("")
    assert sizes.size == 5
    TrainConfig.model_validate(sizes.configured().model_dump())
    sizes.halve("")
    assert sizes.size == 1


def test_other_configured_size_begins_anew(tmp_path):
    MicroBatch(settings(4), tmp_path).halve("")
    assert MicroBatch(settings(8), tmp_path).size == 8


@pytest.mark.parametrize("text", ["", "{", "[]", '{"size": 2}', '{"configured": 4, "size": 3}'])
def test_damaged_file_is_as_none(tmp_path, text):
    (tmp_path / "micro_batch.json").write_text(text)
    assert MicroBatch(settings(4), tmp_path).size == 4


def test_less_than_one_sequence_is_refused_in_one_line_with_the_way_out(tmp_path):
    sizes = MicroBatch(settings(1, 4, sequence_length=128), tmp_path)
    with pytest.raises(
        AvaError, match=r"one sequence of 128 .*sequence_length.*memory_budget.*gradient_check"
    ) as caught:
        sizes.halve("no room")
    assert "\n" not in str(caught.value)


def train(config, saved, fails=None):
    """Three steps of a small model that go on from `saved`; `fails(step, rows)` stands for a full memory."""
    torch.manual_seed(0)
    model = EnhancedMoEForCausalLM(
        EnhancedMoEConfig(
            vocab_size=31, hidden_size=16, num_layers=1, num_attention_heads=2, num_ffn_experts=2,
            expert_intermediate_size=8,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    done = 0
    if saved:
        done = saved["done"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    for step in range(done, 3):
        batch = torch.randint(0, 31, (8, 12), generator=torch.Generator().manual_seed(step))
        with raises_out_of_memory():
            for rows in batch.split(config.micro_batch_size):
                loss = model(rows, labels=rows, return_logits=False).loss
                if fails and fails(step, len(rows)):
                    torch.empty(2**46, dtype=torch.uint8)
                (loss * len(rows) / 8).backward()
        optimizer.step()
        optimizer.zero_grad()
        state = {"done": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        saved.update(copy.deepcopy(state))
    return model.state_dict()


def test_run_that_ran_out_at_the_start_ends_like_one_that_was_configured_with_less(tmp_path):
    saved = {}
    halved = until_it_fits(MicroBatch(settings(4), tmp_path), lambda c: train(c, saved, lambda _, rows: rows > 2))
    configured = train(settings(2), {})
    larger = train(settings(4), {})
    assert all(torch.equal(halved[name], configured[name]) for name in halved)
    assert not all(torch.equal(halved[name], larger[name]) for name in halved)


def test_run_that_ran_out_later_goes_on_from_its_checkpoint(tmp_path):
    saved = {}
    sizes = MicroBatch(settings(4), tmp_path)
    halved = until_it_fits(sizes, lambda c: train(c, saved, lambda step, rows: step == 1 and rows > 2))
    assert sizes.size == 2
    expected = {}
    with pytest.raises(OutOfMemory):
        train(settings(4), expected, lambda step, _: step == 1)
    resumed = train(settings(2), expected)
    assert all(torch.equal(halved[name], resumed[name]) for name in halved)


@pytest.mark.slow
def test_memory_of_a_failed_attempt_is_there_for_the_next_one(tmp_path):
    """Under a real limit: each attempt holds 60 MiB per sequence, 150 MiB more can be had than the process has."""
    script = f"""
        import pathlib, resource
        import torch
        from ava_core.config.train import TrainConfig
        from ava_core.training.memory.out_of_memory import MicroBatch, raises_out_of_memory, until_it_fits

        torch.set_num_threads(1)
        sizes = MicroBatch(TrainConfig(micro_batch_size=16, global_batch_size=16), pathlib.Path({str(tmp_path)!r}))
        now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (150 << 20), resource.RLIM_INFINITY))
        attempts = []

        def run(config):
            attempts.append(config.micro_batch_size)
            held = []
            with raises_out_of_memory():
                for _ in range(config.micro_batch_size):
                    held.append(torch.ones(60 << 20, dtype=torch.uint8))
            return sum(int(tensor[-1]) for tensor in held)

        print(until_it_fits(sizes, run), attempts)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "2 [16, 8, 4, 2]", done.stderr[-2000:]
