"""All-reduce over the processes of one machine through shared memory: DeepSpeed's compiled op `deepspeed_shm_comm`.

    python -m ava_core.distributed.shared_memory_op     # builds it, about half a minute; needs g++ and ninja

For training on CPUs in several processes. Gloo sends gradients through sockets; the op takes half of its time or less
(20 million float32 in 2 processes: 60 instead of 110 ms). DeepSpeed itself uses it only for inference, so
`use_for_all_reduce` routes all-reduces over every process through it. Two processes get the same bits with and without
it; more add up in another order, so their results differ by rounding.

A training never compiles it. DeepSpeed would, in every process at once where `__compatible_ops__` has it: one builds,
the others wait for its lock file, for ever if that one is killed. Here it is built once, renamed into place when it is
whole, and loaded from there without ninja or a compiler; without a built one the processes use Gloo. The file is named
after the versions of DeepSpeed, torch and Python, and is kept in TORCH_EXTENSIONS_DIR, else in `~/.cache/ava`.

A container image runs the command above as the user and with the TORCH_EXTENSIONS_DIR that it trains with, in a stage
that has g++, ninja and Python's headers, and copies the file; or it installs a DeepSpeed wheel that was built with
`DS_BUILD_SHM_COMM=1 DS_ACCELERATOR=cpu pip wheel deepspeed --no-build-isolation`, which carries the op.

A process that waits in the op for one that has died waits until it is ended: whoever started the processes must do so,
as `ava train`, torchrun, mpirun and DeepSpeed's launcher do.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ava_core.distributed.deepspeed import import_deepspeed
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError, first_line

log = logging.getLogger(__name__)
NAME = "deepspeed_shm_comm"


def library_path() -> Path:
    """Path of the compiled op, whether it is there or not."""
    folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    versions = [f"{name}{importlib.metadata.version(name)}" for name in ("deepspeed", "torch")]
    name = "-".join([NAME, *versions, str(sys.implementation.cache_tag)])
    return (Path(folder) if folder else Path.home() / ".cache" / "ava") / f"{name}.so"


def build() -> Path | None:
    """Compile the op and rename it to its path when it is complete.

    Returns:
        Its path; None if DeepSpeed's wheel contains it.

    Raises:
        AvaError: a tool is missing, or the compiler fails.
    """
    import_deepspeed()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    library = library_path()
    if _installed():
        return None
    if library.is_file():
        return library
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # ninja
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder, _variable("TORCH_EXTENSIONS_DIR", folder):
        try:
            ShareMemCommBuilder().jit_load(verbose=False)
        except (RuntimeError, OSError, ImportError) as error:
            reason = first_line(error)
            raise AvaError(f"{NAME}: can't be built: {reason}: it needs g++, ninja and Python's headers") from error
        next(Path(folder).rglob(f"{NAME}.so")).rename(library)
    return library


def choose(deepspeed: Any, ranks: Ranks) -> bool:
    """Load the op where every process can, and tell DeepSpeed whether to use it.

    Collective, and before `deepspeed.init_distributed`.

    Returns:
        Whether it is used.
    """
    import torch

    if torch.cuda.is_available():  # its accelerator has no such op; and to ask for the list makes DeepSpeed try all
        return False
    deepspeed.ops.__compatible_ops__[NAME] = False
    if ranks.size == 1 or ranks.local_size != ranks.size:
        return False
    try:
        missing = "" if _installed() or _load() else "is not built"
    except ImportError as error:
        missing = f"can't be loaded ({error})"
    if ranks.any(bool(missing)):
        if ranks.is_first:
            log.info(
                "DeepSpeed's op for shared memory %s: the processes use Gloo;"
                " `python -m ava_core.distributed.shared_memory_op` builds it",
                missing or "is missing in another process",
            )
        return False
    os.environ["LOCAL_SIZE"] = str(ranks.size)  # how the op knows that all are on one machine
    deepspeed.ops.__compatible_ops__[NAME] = True
    return True


def use_for_all_reduce(backend: Any) -> None:
    """Route DeepSpeed's all-reduces over every process through the op: sums of contiguous tensors whose dtype it knows.

    Args:
        backend: `deepspeed.comm.comm.cdb`, which has loaded the op.
    """
    import torch
    from deepspeed.comm.reduce_op import ReduceOp
    from torch import distributed

    level = backend.shm_vector_kernel_level  # 1: float32 needs AVX2; 2: the others need AVX-512
    dtypes = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 2}
    through_gloo = backend.all_reduce

    def all_reduce(tensor, op=ReduceOp.SUM, group=None, async_op=False):
        suits = (
            op in (ReduceOp.SUM, distributed.ReduceOp.SUM)
            and not async_op
            and tensor.is_contiguous()
            and level >= dtypes.get(tensor.dtype, 3)
            and distributed.get_world_size(group) == distributed.get_world_size()
        )
        if not suits:
            return through_gloo(tensor, op, group, async_op)
        torch.ops.deepspeed.inference_all_reduce_(tensor)
        return None

    backend.all_reduce = all_reduce


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hide what DeepSpeed prints whenever it loads the op."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _installed() -> bool:
    """Whether DeepSpeed's wheel was built with the op."""
    from deepspeed.git_version_info import accelerator_name, installed_ops

    return bool(installed_ops.get(NAME)) and accelerator_name == "cpu"


def _load() -> bool:
    """Load the built op into DeepSpeed's list of loaded ones; False if there is none.

    Raises:
        ImportError: the file is damaged.
    """
    from deepspeed.ops.op_builder.builder import OpBuilder

    if NAME in OpBuilder._loaded_ops:
        return True
    library = library_path()
    if not library.is_file():
        return False
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    OpBuilder._loaded_ops[NAME] = module
    return True


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


if __name__ == "__main__":
    try:
        print(build() or "DeepSpeed's wheel carries the op")
    except AvaError as error:
        sys.exit(str(error))
