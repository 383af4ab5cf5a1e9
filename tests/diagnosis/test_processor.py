"""Compiler, kernels, cores, memory and GPUs, as they are where something is wrong."""

import pytest

from ava_core.config.hardware import NEEDED_FLAGS, TILE_FLAGS
from ava_core.diagnosis import processor
from ava_core.diagnosis.processor import check_compiler, check_cores, check_gpus, check_kernels, check_memory
from ava_core.kernels.build import library_path


def only(findings):
    (finding,) = findings
    return finding


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "_native-1.so"
    path.write_bytes(b"")
    return path


def test_a_missing_compiler_warns(monkeypatch):
    monkeypatch.setenv("PATH", "/none")
    finding = only(check_compiler())
    assert finding.status == "warn" and "apt install g++" in finding.way_out


@pytest.mark.parametrize(
    ("asked", "flags", "status", "told"),
    [
        ("", NEEDED_FLAGS, "ok", "AVX-512 (this CPU has no AMX)"),
        ("", (*NEEDED_FLAGS, *TILE_FLAGS), "ok", "AMX's tiles"),
        ("avx512", (*NEEDED_FLAGS, *TILE_FLAGS), "ok", "with the products avx512, as AVA_KERNELS says"),
        ("onednn", NEEDED_FLAGS, "ok", "PyTorch's matrix products, as AVA_KERNELS = onednn says"),
        ("off", NEEDED_FLAGS, "ok", "PyTorch alone, as AVA_KERNELS = off says"),
        ("", NEEDED_FLAGS[:-1], "ok", "PyTorch alone, for this CPU has no avx512_bf16"),
        ("native", NEEDED_FLAGS[:-1], "fail", "AVA_KERNELS = native, but this CPU has no avx512_bf16"),
        ("fast", NEEDED_FLAGS, "fail", "AVA_KERNELS = fast"),
    ],
)
def test_kernels_and_why(library, asked, flags, status, told):
    finding = only(check_kernels({"AVA_KERNELS": asked}, flags, library))
    assert finding.status == status and told in finding.value


@pytest.mark.parametrize(("asked", "status"), [("", "warn"), ("native", "fail")])
def test_kernels_that_are_not_built_are_told_with_the_command(tmp_path, asked, status):
    wanted = tmp_path / "_native-2.so"
    finding = only(check_kernels({"AVA_KERNELS": asked}, NEEDED_FLAGS, wanted))
    assert (finding.status, finding.way_out) == (status, "run `python -m ava_core.kernels.build`")
    assert finding.value.startswith("not built")
    (tmp_path / "_native-1.so").write_bytes(b"")
    assert only(check_kernels({}, NEEDED_FLAGS, wanted)).value.startswith("built from other sources")


def test_the_library_that_is_looked_for_is_the_one_that_is_loaded():
    assert processor._library_path() == library_path()


def test_fewer_cores_than_the_machine_has_and_threads_that_are_set_are_told(monkeypatch):
    monkeypatch.setattr(processor.os, "cpu_count", lambda: 16)
    cores, threads = check_cores({"OMP_NUM_THREADS": "16"}, usable=2)
    assert cores.value.startswith("2 of 16: affinity, or the quota of a container")
    assert threads.value.startswith("OMP_NUM_THREADS=16")
    assert len(list(check_cores({"OMP_NUM_THREADS": "2"}, usable=2))) == 1


@pytest.mark.parametrize(("free", "status"), [(0.5, "fail"), (3.0, "warn"), (30.0, "ok")])
def test_little_memory_is_told(tmp_path, free, status):
    assert next(check_memory(free, 32.0, tmp_path)).status == status


def test_little_shared_memory_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        processor.shutil, "disk_usage", lambda path: processor.shutil._ntuple_diskusage(2**26, 0, 2**26)
    )
    _, shared = check_memory(30.0, 32.0, tmp_path)
    assert (shared.status, shared.value) == ("warn", "64 MiB")


def test_a_container_has_what_its_limit_leaves_free(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "MEMORY_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**29 + 2**28}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2**28}\n")
    assert next(check_memory(shared=tmp_path)).value == "0.5 of 1.0 GiB are free"


@pytest.fixture
def nvidia_smi(tmp_path):
    def write(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_a_gpu_that_this_pytorch_cannot_use_warns(nvidia_smi):
    program = nvidia_smi("echo 'H200, 143771 MiB, 550.1'")
    finding = only(check_gpus({}, program, "2.13.0+cpu"))
    assert finding.status == "warn" and "torch 2.13.0+cpu has no CUDA" in finding.value
    assert only(check_gpus({}, program, "2.13.0")).line() == "ok    gpu: H200, 143771 MiB, 550.1"
    assert "hidden by CUDA_VISIBLE_DEVICES" in only(check_gpus({"CUDA_VISIBLE_DEVICES": ""}, program, "2.13.0")).value


def test_a_driver_that_answers_with_an_error_warns(nvidia_smi):
    assert only(check_gpus({}, nvidia_smi("echo failed >&2; exit 9"), "2.13.0")).status == "warn"
