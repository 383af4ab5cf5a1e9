"""What computes: compiler, native kernels, cores, memory, GPUs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from ava_core.config.hardware import (
    GIB,
    KERNEL_CHOICES,
    KERNELS,
    KERNELS_FOLDER,
    MEMORY_LIMIT,
    NEEDED_FLAGS,
    PRODUCTS,
    TILE_FLAGS,
    cpu_flags,
    usable_cores,
)
from ava_core.config.threads import THREAD_VARIABLES
from ava_core.diagnosis.finding import Finding, fail, ok, warn

LITTLE_MEMORY, TOO_LITTLE_MEMORY = 4.0, 1.0
"""GiB that are free: cpu/tiny's training takes 2."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to
LITTLE_SHARED = 0.0626
"""GiB: what container runtimes give, 64 MiB, is too little for ranks that exchange gradients."""
PROGRAM_SECONDS = 2.0
BUILD = "python -m ava_core.kernels.build"


def check_compiler() -> Iterator[Finding]:
    """The compiler of the native kernels and of compiled layers."""
    program = shutil.which("g++") or shutil.which("c++")
    if program is None:
        yield warn("compiler", "no g++ or c++", "the native kernels can't be built: apt install g++")
        return
    version = _first_line_of([program, "--version"])
    yield ok("compiler", version or f"{Path(program).name}, which doesn't say its version")


def check_kernels(
    environment: Mapping[str, str], flags: Iterable[str] | None = None, library: Path | None = None
) -> Iterator[Finding]:
    """Which kernels train in bfloat16 on this CPU, and why.

    Args:
        environment: with AVA_KERNELS.
        flags: of the CPU; None: of this one.
        library: file of the kernels that belongs to these sources; None: that of this code.
    """
    asked = environment.get(KERNELS) or "auto"
    if asked not in KERNEL_CHOICES:
        yield fail("kernels", f"{KERNELS} = {asked}", f"must be one of {', '.join(KERNEL_CHOICES)}")
        return
    if asked == "off":
        yield ok("kernels", f"PyTorch alone, as {KERNELS} = off says")
        return
    flags = set(cpu_flags() if flags is None else flags)
    lacking = [flag for flag in NEEDED_FLAGS if flag not in flags]
    required = asked in ("native", *PRODUCTS)
    if lacking:
        why = f"this CPU has no {lacking[-1]}"
        if required:
            yield fail("kernels", f"{KERNELS} = {asked}, but {why}", f"unset {KERNELS}")
        else:
            yield ok("kernels", f"PyTorch alone, for {why}")
        return
    library = _library_path() if library is None else library
    if not library.is_file():
        older = any(library.parent.glob("_native-*.so"))
        value = "built from other sources" if older else "not built"
        told = fail if required else warn
        yield told("kernels", f"{value}: PyTorch alone trains, more slowly", f"run `{BUILD}`")
        return
    yield ok("kernels", _products(asked, flags))


def _products(asked: str, flags: set[str]) -> str:
    if asked == "onednn":
        return f"Ava's, but PyTorch's matrix products, as {KERNELS} = onednn says"
    if asked in PRODUCTS:
        return f"Ava's, with the products {asked}, as {KERNELS} says"
    if flags.issuperset(TILE_FLAGS):
        return "Ava's, with AMX's tiles, if the system lets processes use them"
    return "Ava's, with AVX-512 (this CPU has no AMX)"


def _library_path() -> Path:
    """By its file: the package around `ava_core.kernels.build` imports torch, which takes seconds."""
    spec = importlib.util.spec_from_file_location("_ava_kernels_build", KERNELS_FOLDER / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.library_path()


def check_cores(environment: Mapping[str, str], usable: int | None = None) -> Iterator[Finding]:
    """Cores that this process may use, and how many threads libraries are told to start."""
    usable, there = usable_cores() if usable is None else usable, os.cpu_count() or 1
    limit = "" if usable >= there else f" of {there}: affinity, or the quota of a container"
    load = os.getloadavg()[0]
    yield ok("cores", f"{usable}{limit}; {platform.machine()}, load {load:.1f}")
    given = {name: environment[name] for name in THREAD_VARIABLES if environment.get(name)}
    if other := {name: value for name, value in given.items() if value != str(usable)}:
        told = ", ".join(f"{name}={value}" for name, value in other.items())
        yield ok("threads", f"{told}; steps set their own, by `threads` in params.yaml")


def check_memory(
    available: float | None = None, limit: float | None = None, shared: Path = SHARED_MEMORY
) -> Iterator[Finding]:
    """Memory that is free, and what ranks share.

    Args:
        available: GiB; None: as this machine has.
        limit: GiB that this process may use at all; None: as this machine has.
        shared: the file system of shared memory.
    """
    available = _available_gib() if available is None else available
    limit = _limit_gib() if limit is None else limit
    value = f"{available:.1f} of {limit:.1f} GiB are free"
    if available < TOO_LITTLE_MEMORY:
        yield fail("memory", value, "end other programs, or raise the container's limit")
    elif available < LITTLE_MEMORY:
        yield warn("memory", value, "`ava config show` says what a training takes; train.micro_batch_size lowers it")
    else:
        yield ok("memory", value)
    if shared.is_dir() and (size := shutil.disk_usage(shared).total / GIB) < LITTLE_SHARED:
        yield warn(
            "shared memory", f"{size * 1024:.0f} MiB", "too little for train.processes > 1: docker run --shm-size=2g"
        )


def _limit_gib() -> float:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total, _limit_bytes(MEMORY_LIMIT) or total) / GIB


def _available_gib() -> float:
    import psutil

    free = psutil.virtual_memory().available
    if limit := _limit_bytes(MEMORY_LIMIT):
        used = _limit_bytes(MEMORY_LIMIT.with_name("memory.current")) or 0
        free = min(free, max(0, limit - used + _cached_bytes(MEMORY_LIMIT.with_name("memory.stat"))))
    return free / GIB


def _limit_bytes(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no container, or `max`
        return None


def _cached_bytes(path: Path) -> int:
    """Of files, which the system gives up where memory is wanted."""
    try:
        return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration):
        return 0


def check_gpus(
    environment: Mapping[str, str], program: str | None = None, torch: str | None = None
) -> Iterator[Finding]:
    """NVIDIA's GPUs, and whether PyTorch was built for them.

    Args:
        environment: with CUDA_VISIBLE_DEVICES.
        program: nvidia-smi; None: the one in PATH.
        torch: version of PyTorch; None: the installed one.
    """
    program = shutil.which("nvidia-smi") if program is None else program
    if program is None:
        yield ok("gpu", "no nvidia-smi: training runs on the CPU")
        return
    listed = _first_line_of([program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if not listed:
        yield warn("gpu", "nvidia-smi lists none", "look at what it prints; training runs on the CPU")
        return
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield ok("gpu", f"{listed}, hidden by CUDA_VISIBLE_DEVICES: training runs on the CPU")
        return
    version = _torch_version() if torch is None else torch
    if version.endswith("+cpu"):
        yield warn("gpu", f"{listed}, but torch {version} has no CUDA", "rm -r .venv, then `make setup`")
        return
    yield ok("gpu", listed)


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "missing"


def _first_line_of(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return next((line.strip() for line in done.stdout.splitlines() if line.strip()), "")
