"""Reading the files of a checkpoint without executing code from them.

A file of a checkpoint is a pickle, and a digest beside it is no proof: whoever rewrote the one can rewrite the other.
So torch's restricted reader takes tensors, plain containers and the few classes that DeepSpeed's files hold, and
refuses every other name before anything is called.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from ava_core.errors import IntegrityError, first_line

_REFUSED = re.compile(r"GLOBAL (?P<name>\S+)")
"""How torch's reader names what it doesn't take."""


def read_tensors(path: Path | str, map_location: Any = "cpu", *, mmap: bool = True) -> Any:
    """The tensors and plain values in a file of a checkpoint.

    Args:
        path: a file as `torch.save` writes it.
        map_location: as `torch.load` takes it.
        mmap: map tensors from the file, instead of reading them at once.

    Raises:
        IntegrityError: it holds something else than tensors and plain values, or can't be read.
    """
    with torch.serialization.safe_globals(_plain_classes()):
        try:
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            found = _REFUSED.search(str(error))
            what = (
                f"holds {found['name']}, which could run code" if found else "holds more than tensors and plain values"
            )
            raise IntegrityError(f"{path}: {what}: the checkpoint is not used") from error
        except Exception as error:  # whatever a reader of bytes that mean nothing runs into
            reason = first_line(error)
            raise IntegrityError(f"{path}: can't be read ({reason}): the checkpoint is not used") from error


def _plain_classes() -> list[Any]:
    """Classes of DeepSpeed's in its own files: records of numbers, whose construction does nothing else."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, fragment_address]
