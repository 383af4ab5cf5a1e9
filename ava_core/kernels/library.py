"""The compiled kernels, if this machine can run them. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ava_core.kernels.build import library_path

log = logging.getLogger(__name__)
NEEDED_FLAGS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the CPU says that it can do, as Linux names it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


@functools.cache
def library() -> Any | None:
    """The loaded library; None where it wasn't built or the CPU lacks AVX-512 BF16."""
    if not cpu_flags().issuperset(NEEDED_FLAGS):
        return None
    path = library_path()
    if not path.is_file():
        log.info("the native kernels aren't built: `python -m ava_core.kernels.build` makes training here faster")
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # torch without OpenMP, for one
        log.info("the native kernels can't be loaded: %s", error)
        return None


def products_pay() -> bool:
    """Whether our matrix products are the fastest here: with AMX, oneDNN's are several times as fast."""
    # First, for a compiler would trace the reading of files behind it.
    return not torch.compiler.is_compiling() and library() is not None and "amx_bf16" not in cpu_flags()


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: real bfloat16 ones in the CPU's memory."""
    return (
        not torch.compiler.is_compiling()
        and all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in tensors)
        and library() is not None
        and not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)
    )


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call a function of the library: (contiguous) tensors as pointers, integers as int64, floats as float."""
    function = getattr(library(), name)
    function(*[_argument(a) for a in arguments])


def _argument(value: Tensor | int | float | None) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        assert value.is_contiguous()  # the kernels know no strides
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)
