from pathlib import Path

import pytest

from ava_core.config import hardware, presets, resolve
from ava_core.config.estimate import estimate
from ava_core.config.hardware import Hardware, choose_preset
from ava_core.errors import ConfigError

RULES = presets.FOLDER / "auto" / "rules.yaml"


@pytest.mark.parametrize(
    ("machine", "preset"),
    [
        (Hardware(2, 4.0, 0, 0.0), "cpu/tiny"),
        (Hardware(8, 16.0, 0, 0.0), "cpu/small"),
        (Hardware(8, 8.0, 0, 0.0), "cpu/tiny"),
        (Hardware(64, 256.0, 0, 0.0), "cpu/medium"),
        (Hardware(8, 32.0, 1, 24.0), "gpu/base"),
        (Hardware(8, 32.0, 1, 12.0), "cpu/small"),
        (Hardware(16, 128.0, 8, 80.0), "gpu/large"),
    ],
)
def test_auto_takes_the_largest_preset_that_the_machine_can_train_and_says_why(machine, preset):
    name, reason = choose_preset(machine, RULES)
    assert name == preset
    assert reason.startswith(f"{preset}, for this machine has {machine.cores} cores, {machine.memory_gib:.0f} GiB")
    assert ("no GPU" in reason) == (machine.gpus == 0)


def test_every_machine_gets_a_preset():
    assert choose_preset(Hardware(1, 0.5, 0, 0.0), RULES)[0] == "cpu/tiny"


def test_rules_that_fit_no_machine_are_refused(tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{preset: cpu/tiny, needs: {cores: 9}, because: x}]")
    with pytest.raises(ConfigError, match=r"preset = auto: no rule in .*rules\.yaml fits this machine: name a preset"):
        choose_preset(Hardware(8, 1.0, 0, 0.0), rules)


def test_auto_is_resolved_with_its_reason(monkeypatch):
    monkeypatch.setattr(hardware, "detect", lambda: Hardware(8, 32.0, 1, 24.0))
    resolved = resolve(overrides=["preset=auto"])
    assert resolved.config.model == resolve(overrides=["preset=gpu/base"]).config.model
    assert resolved.config.preset == "auto"
    assert "gpu/base, for this machine has 8 cores, 32 GiB memory, 1 GPU of 24 GiB" in resolved.preset_reason
    assert resolved.origins["model.hidden_size"] == "configs/gpu/base.yaml"
    assert resolve(overrides=["preset=gpu/base"]).preset_reason is None


def test_this_machine_is_measured():
    machine = hardware.detect()
    assert machine.cores >= 1
    assert 0.1 < machine.memory_gib < 1e5
    assert (machine.gpus == 0) == (machine.gpu_memory_gib == 0)


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 6), ("150000 100000", 2), ("50000 100000", 1), ("x", 6)])
def test_the_quota_of_a_container_bounds_the_cores(monkeypatch, tmp_path, quota, cores):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(hardware, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(6)))
    assert hardware.usable_cores() == cores


def test_gpus_are_asked_from_their_driver(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '81559\\n24576\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    machine = hardware.detect()
    assert (machine.gpus, machine.gpu_memory_gib) == (2, 24.0)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert hardware.detect().gpus == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rules: 5",
        "rules: [1]",
        "rules: [{preset: cpu/tiny}]",
        "rules: [{preset: cpu/tiny, because: x, needs: {core: 1}}]",
        "rules: [{preset: cpu/tiny, because: x, needs: {cores: many}}]",
        "rules: &a [*a]",
        "rules: " + "[" * 5000,
    ],
)
def test_rules_that_cannot_be_read_are_refused_by_the_name_of_their_file(text, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(text)
    with pytest.raises(ConfigError, match=r"preset = auto: .*rules\.yaml: can't be read: "):
        choose_preset(Hardware(8, 1.0, 0, 0.0), rules)


MEANT_FOR = {
    "a100": ("gpu/base", "gpu/large"),
    "h100": ("gpu/base", "gpu/large"),
    "epyc": ("cpu/tiny", "cpu/small", "cpu/medium"),
    "sapphire-rapids": ("cpu/tiny", "cpu/small", "cpu/medium"),
    "laptop": ("cpu/tiny", "cpu/small"),
}
KERNELS = {"a100": "gpu", "h100": "gpu", "epyc": "off", "sapphire-rapids": "native", "laptop": "off"}


def test_every_overlay_is_meant_for_something():
    assert sorted(MEANT_FOR) == presets.hardware_names()


@pytest.mark.parametrize("preset", presets.names())
@pytest.mark.parametrize("name", presets.hardware_names())
def test_every_overlay_goes_with_every_preset_and_fits_where_it_is_meant_for(name, preset):
    resolved = resolve(overrides=[f"preset={preset}", f"hardware={name}"])
    plain = resolve(overrides=[f"preset={preset}"]).config
    config = resolved.config
    assert resolved.origins["train.micro_batch_size"] == f"configs/hardware/{name}.yaml"
    # What the machine decides, and nothing of what is learnt.
    changed = {key for key, value in config.train if value != getattr(plain.train, key)}
    assert changed <= {"precision", "micro_batch_size", "gradient_checkpointing", "memory_budget"}
    assert (config.model, config.data, config.tokenizer) == (plain.model, plain.data, plain.tokenizer)
    if preset in MEANT_FOR[name]:
        # With a budget a training is refused if it doesn't fit with every layer recomputed.
        least = config.train.model_copy(update={"gradient_checkpointing": True, "memory_budget": None})
        taken = estimate(config.model, least, config.tokenizer.vocab_size, KERNELS[name]).total_bytes
        assert taken <= config.train.memory_budget * hardware.GIB


def test_overlays_lie_between_preset_and_parameters(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("preset: cpu/small\nhardware: laptop\ntrain: {micro_batch_size: 2}\n")
    resolved = resolve(params=params)
    assert (resolved.config.train.micro_batch_size, resolved.config.train.memory_budget) == (2, 8)
    assert resolved.config.hardware == "laptop" and resolved.config.threads == 3
    assert resolved.origins["train.memory_budget"] == "configs/hardware/laptop.yaml"
    assert resolve(params=params, overrides=["hardware=epyc"]).config.threads == 0


def test_config_takes_the_name_of_a_shipped_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolved = resolve(config_files=[Path("hardware/a100")], overrides=["preset=gpu/large"])
    assert resolved.config.train.memory_budget == 72 and not resolved.config.train.gradient_checkpointing
    (tmp_path / "hardware").mkdir()
    (tmp_path / "hardware" / "a100").write_text("train: {memory_budget: 5}")
    assert resolve(config_files=[Path("hardware/a100")]).config.train.memory_budget == 5  # what is there goes first
    for outside in ("../params", "nowhere"):
        with pytest.raises(ConfigError, match="no such file"):
            resolve(config_files=[Path(outside)])


def test_unknown_hardware_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"--set: hardware = a1000: unknown hardware: did you mean a100\?"):
        resolve(overrides=["hardware=a1000"])
    with pytest.raises(ConfigError, match=r"hardware = \.\./x: unknown hardware: must be one of a100, epyc, h100, "):
        resolve(overrides=["hardware=../x"])
