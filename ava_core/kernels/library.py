"""The compiled kernels, if this machine can run them. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

import torch
from torch import Tensor

from ava_core.config.hardware import NEEDED_FLAGS, PRODUCTS, TILE_FLAGS, cpu_flags, requested_kernels
from ava_core.errors import ConfigError
from ava_core.kernels.entries import ENTRIES, SOUND

log = logging.getLogger(__name__)

AMX = "amx"


def library() -> Any | None:
    """The loaded library; None where it wasn't built, the CPU lacks AVX-512 BF16, or AVA_KERNELS says off.

    Raises:
        ConfigError: AVA_KERNELS asks for our products where the library can't be used, or has a value that it may not
            have.
    """
    requested = requested_kernels()
    if requested == "off":
        return None
    if requested in ("native", *PRODUCTS) and loaded() is None:
        raise ConfigError(
            f"environment: AVA_KERNELS = {requested}: this machine can't: it needs Linux, a CPU with AVX-512 BF16, and"
            " `python -m ava_core.kernels.build`"
        )
    return loaded()


@functools.cache
def loaded() -> Any | None:
    """The library, if this machine can run it, whatever AVA_KERNELS says."""
    # Not at the top: `python -m ava_core.kernels.build` imports this package before it runs that module.
    from ava_core.kernels.build import SOURCES, library_path

    if not cpu_flags().issuperset(NEEDED_FLAGS):
        return None
    if not SOURCES.is_dir():  # the code is an archive, as a registered version has it
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
    """Whether matrix products are ours here: not where AVA_KERNELS says onednn or off."""
    # Asked first: torch.compile would trace the file reads behind `library`.
    return not torch.compiler.is_compiling() and library() is not None and requested_kernels() != "onednn"


def products_path() -> str:
    """Which of the library's products run here, a key of `ava_core.kernels.build.PATHS`: with AMX's tiles where this
    process may use them, unless AVA_KERNELS names another."""
    requested = requested_kernels()
    if requested in PRODUCTS:
        return requested
    return AMX if has_tiles() else "avx512"


@functools.cache
def has_tiles() -> bool:
    """Whether the library has products for AMX, and the kernel let this process use it, asked once.

    Linux grants tiles to a process, for their state makes every thread's larger (Documentation/arch/x86/xstate.rst).
    """
    library = loaded()
    if library is None or not cpu_flags().issuperset(TILE_FLAGS) or not hasattr(library, f"ava_linear_{AMX}"):
        return False
    if library.ava_allow_tiles():
        log.info("this CPU has AMX, but the system lets no process use it: training goes without")
        return False
    return True


def path() -> str:
    """What bfloat16 training runs on here, in the values of AVA_KERNELS.

    native: all of our kernels; onednn: our kernels but PyTorch's matrix products; off: PyTorch alone.
    """
    if library() is None:
        return "off"
    return "native" if products_pay() else "onednn"


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: bfloat16 in the CPU's memory, with data behind them.

    Those that torch.compile traces or torch.func wraps (vmap, grad) have none.
    """
    return (
        not torch.compiler.is_compiling()
        and all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in tensors)
        and library() is not None
        and not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)
    )


def call(name: str, *arguments: Tensor | float | None) -> None:
    """Call a function of the library, with what `ENTRIES` says that it takes.

    Raises:
        ValueError: an argument has another type or shape, or isn't contiguous.
        IndexError: an index is out of its range. What the function should have written is undefined then.
    """
    entry = ENTRIES[name]
    code = _function(name, products_path() if entry.products else None)(*entry.bind(arguments))
    if code != SOUND:
        raise entry.explain(code, arguments)


@functools.cache
def _function(name: str, path: str | None) -> Any:
    function = getattr(loaded(), f"{name}_{path}" if path else name)
    function.argtypes, function.restype = ENTRIES[name].types, ctypes.c_int64
    return function
