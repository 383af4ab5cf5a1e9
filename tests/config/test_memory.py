"""A training that can't fit into the machine is refused by what makes it large; one that may fit isn't."""

import pytest

from ava_core.config import memory, resolve
from ava_core.config.estimate import estimate
from ava_core.config.hardware import GIB, Hardware
from ava_core.config.memory import require_memory, require_training_memory
from ava_core.errors import ConfigError

CPU = Hardware(cores=2, memory_gib=16.0, gpus=0, gpu_memory_gib=0.0)
GPU = Hardware(cores=8, memory_gib=128.0, gpus=1, gpu_memory_gib=80.0)


@pytest.fixture(autouse=True)
def no_swap(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")


def refuse(machine: Hardware, *overrides: str) -> str:
    config = resolve(overrides=overrides).config
    with pytest.raises(ConfigError) as refusal:
        require_memory(config.model, config.train, config.tokenizer.vocab_size, machine)
    (line,) = refusal.value.faults
    return line


LARGE = [
    (["model.hidden_size=65536"], "attention: lower model.num_attention_heads = 4, model.num_layers = 4, model.hid"),
    (["model.num_ffn_experts=60000"], "the experts: lower model.num_ffn_experts = 60000, model.expert_intermediate_s"),
    (
        ["tokenizer.vocab_size=1000000", "model.hidden_size=8192"],
        "the embedding: lower tokenizer.vocab_size = 1000000",
    ),
    (["model.num_copy_experts=60000"], "the routers: lower model.num_copy_experts = 60000, model.num_layers = 4"),
    (
        ["model.max_position_embeddings=90000000", "train.sequence_length=90000000"],
        "what one sequence needs for the backward pass: lower train.sequence_length = 90000000",
    ),
]


@pytest.mark.parametrize(("overrides", "reason"), LARGE)
def test_refusal_names_the_estimate_the_machine_and_the_keys(overrides, reason):
    line = refuse(CPU, *overrides)
    assert " parameters take at least " in line and ", and this machine has 16.0 GiB of memory: most of it is " in line
    assert reason in line


def test_processes_add_up_and_are_named():
    given = ["train.processes=64", "train.global_batch_size=2048"]
    assert refuse(Hardware(2, 4.0, 0, 0.0), *given).endswith(" or train.processes")
    assert "GiB in 64 processes, and this machine has 4.0 GiB" in refuse(Hardware(2, 4.0, 0, 0.0), *given)


def test_zero_lets_fit_what_would_not_fit_alone():
    model = ["model.num_layers=12", "model.hidden_size=2048", "model.expert_intermediate_size=2048"]
    processes = ["train.processes=8", "train.global_batch_size=256", "train.optimizer=adamw"]
    config = resolve(overrides=[*model, *processes]).config
    needed = memory._resident_bytes(estimate(config.model, memory._smallest(config.train), 2048))
    machine = Hardware(2, 4 * needed / GIB, 0, 0.0)
    refuse(machine, *model, *processes)
    cut = resolve(overrides=[*model, *processes, "train.zero_stage=3"]).config
    require_memory(cut.model, cut.train, 2048, machine)


def test_memory_of_the_smallest_gpu_counts_unless_the_optimizer_is_kept_elsewhere():
    model = ["preset=gpu/large", "model.num_layers=40", "model.num_ffn_experts=32"]
    assert "GiB on its smallest GPU" in refuse(GPU, *model)
    config = resolve(overrides=[*model, "train.zero_stage=1", "train.offload=optimizer"]).config
    require_memory(config.model, config.train, config.tokenizer.vocab_size, GPU)


MAY_FIT = [
    (CPU, ["preset=cpu/tiny"]),
    (CPU, ["preset=cpu/medium"]),
    (GPU, ["preset=gpu/large"]),
    (CPU, ["train.micro_batch_size=1000000", "train.global_batch_size=1000000"]),  # is halved until it fits
    (CPU, ["model.hidden_size=65536", "train.launcher=trainjob"]),  # other machines train
    (CPU, ["model.hidden_size=65536", "train.hostfile=hosts"]),
]


@pytest.mark.parametrize(("machine", "overrides"), MAY_FIT)
def test_what_may_fit_or_runs_elsewhere_is_not_refused(machine, overrides):
    config = resolve(overrides=overrides).config
    require_memory(config.model, config.train, config.tokenizer.vocab_size, machine)
    require_training_memory(config, machine)


def test_swap_counts_as_memory(tmp_path):
    overrides = ["model.num_ffn_experts=1200"]
    refuse(CPU, *overrides)
    (tmp_path / "meminfo").write_text("MemTotal:  1 kB\nSwapTotal:  999999999 kB\n")
    config = resolve(overrides=overrides).config
    require_memory(config.model, config.train, 2048, CPU)
