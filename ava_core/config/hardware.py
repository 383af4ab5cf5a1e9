"""What this machine has, read without importing torch, and the preset that fits it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ava_core.config.precision import Precision
from ava_core.config.yaml_text import read_yaml
from ava_core.errors import ConfigError

GIB = 2**30
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
KERNELS = "AVA_KERNELS"
PRODUCTS = ("avx512", "emulated")
"""Ways of Ava's kernels to multiply matrices that may be asked for by name; AMX's tiles are `native` where they are."""
KERNEL_CHOICES = ("auto", "native", *PRODUCTS, "onednn", "off")
PROVIDER = "AVA_ONNX_PROVIDER"
PROVIDER_CHOICES = ("auto", "cpu", "cuda")
KERNELS_FOLDER = Path(__file__).parents[1] / "kernels"
NEEDED_FLAGS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")
"""CPU flags that Ava's native kernels need."""
TILE_FLAGS = ("amx_tile", "amx_bf16")
"""CPU flags that their products in AMX's tiles need."""


@dataclass(frozen=True)
class Hardware:
    """Resources that this process may use.

    Attributes:
        cores: CPU cores.
        memory_gib: memory in GiB; a container's limit where there is one.
        gpus: number of NVIDIA GPUs.
        gpu_memory_gib: memory of the smallest of them in GiB, 0 without one.
    """

    cores: int
    memory_gib: float
    gpus: int
    gpu_memory_gib: float


def detect() -> Hardware:
    """Look at this machine."""
    memories = _gpu_memories_gib()
    return Hardware(usable_cores(), _memory_gib(), len(memories), min(memories, default=0.0))


def usable_cores() -> int:
    """CPU cores that this process may use: by affinity, and by the quota of its container, rounded up."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, -(-int(quota) // int(period))))


def requested_kernels() -> str:
    """What AVA_KERNELS asks of a CPU in bfloat16, whatever this one would do fastest: one of KERNEL_CHOICES.

    native: products by Ava's own kernels, as auto; avx512: without AMX's tiles; emulated: with tiles in software, for
    tests; onednn: products by PyTorch; off: all by PyTorch.

    Raises:
        ConfigError: it is something else.
    """
    return _chosen(KERNELS, KERNEL_CHOICES)


def requested_provider() -> str:
    """What AVA_ONNX_PROVIDER asks of ONNX Runtime: one of PROVIDER_CHOICES; `ava_core.onnx.providers` follows it.

    Raises:
        ConfigError: it is something else.
    """
    return _chosen(PROVIDER, PROVIDER_CHOICES)


def _chosen(variable: str, choices: tuple[str, ...]) -> str:
    value = os.environ.get(variable) or "auto"
    if value not in choices:
        raise ConfigError(f"environment: {variable} = {value!r}: must be one of {', '.join(choices)}")
    return value


@functools.cache
def cpu_flags() -> frozenset[str]:
    """CPU feature flags from /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def natural_precision() -> Precision:
    """The faster type to train in here: bf16 on a GPU and on CPUs that have products in it, else fp32.

    With AVX2 alone PyTorch's products in bfloat16 take 18 times as long as in float32.
    """
    return "bf16" if has_bfloat16_products() or _gpu_memories_gib() else "fp32"


def has_bfloat16_products() -> bool:
    """Whether this CPU's products in bfloat16 are worth it: AVX-512, for which oneDNN has them, or ARM's own; unknown
    CPUs count as having them."""
    flags = cpu_flags()
    return not flags or "avx512bw" in flags or "bf16" in flags


def kernels_path() -> str:
    """What trains in bfloat16 on this CPU, as far as it can be known without PyTorch: native, onednn or off.

    `ava_core.kernels.library.path` knows for certain.

    Raises:
        ConfigError: AVA_KERNELS is no value that it may have.
    """
    requested = requested_kernels()
    if requested == "off" or not cpu_flags().issuperset(NEEDED_FLAGS) or not any(KERNELS_FOLDER.glob("_native-*.so")):
        return "off"
    return "onednn" if requested == "onednn" else "native"


def kernels_choice() -> dict[str, str]:
    """What AVA_KERNELS asks for, as a part of a step's key and manifest: it changes last bits. Nothing by default: what
    this machine chooses itself is, like its CPU, the same on every run here.
    """
    requested = requested_kernels()
    return {} if requested == "auto" else {"kernels": requested}


def provider_choice() -> dict[str, str]:
    """As `kernels_choice`, what AVA_ONNX_PROVIDER asks for."""
    requested = requested_provider()
    return {} if requested == "auto" else {"onnx_provider": requested}


def has_gpu() -> bool:
    """Whether this process sees an NVIDIA GPU; none where CUDA_VISIBLE_DEVICES hides them all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and bool(_gpu_memories_gib())


def choose_preset(hardware: Hardware, rules: Path) -> tuple[str, str]:
    """The first rule of `rules` that the hardware satisfies: the preset's name, and why.

    Raises:
        ConfigError: no rule fits.
    """
    for preset, needs, because in _read_rules(rules):
        if all(getattr(hardware, name) >= least for name, least in needs.items()):
            gpu = f"{hardware.gpus} GPU of {hardware.gpu_memory_gib:.0f} GiB" if hardware.gpus else "no GPU"
            machine = f"{hardware.cores} cores, {hardware.memory_gib:.0f} GiB memory, {gpu}"
            return preset, f"{preset}, for this machine has {machine}: {because}"
    raise ConfigError(f"preset = auto: no rule in {rules} fits this machine: name a preset")


def _read_rules(path: Path) -> list[tuple[str, dict[str, float], str]]:
    """Preset, what it needs, and why, of each rule.

    Raises:
        ConfigError: the file holds something else; the file comes with Ava, but people adapt it.
    """
    try:
        found = read_yaml(path.read_text(encoding="utf-8"))["rules"]
        rules = [(str(rule["preset"]), dict(rule.get("needs") or {}), str(rule["because"])) for rule in found]
        unknown = {name for _, needs, _ in rules for name in needs} - set(Hardware.__dataclass_fields__)
        if unknown or not all(isinstance(least, int | float) for _, needs, _ in rules for least in needs.values()):
            raise ValueError(f"needs: must be numbers of {', '.join(Hardware.__dataclass_fields__)}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, ValueError) else "must list `rules` with preset, needs and because"
        raise ConfigError(f"preset = auto: {path}: can't be read: {reason}") from error
    return rules


def _memory_gib() -> float:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if MEMORY_LIMIT.is_file() and (text := MEMORY_LIMIT.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total / GIB


def _gpu_memories_gib() -> list[float]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [float(line) / 1024 for line in result.stdout.splitlines() if line.strip().replace(".", "", 1).isdigit()]
