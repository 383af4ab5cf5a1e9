"""A checkpoint's safetensors: what tensors there are, and one of them at a time.

Names, types and shapes come from the files' headers; a tensor's bytes are read when it is asked for, and the file is
closed again, so that no more of it stays mapped than is in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ava_core.errors import AvaError, IntegrityError
from ava_core.models.conversion.recipes import Shape, Tensors
from ava_core.models.weight_files import INDEX, SINGLE, find_weights, opened

REMEDY = "fetch it again"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What weights may be kept as, by the format's names."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what it is."""

    file: Path
    dtype: str
    shape: Shape


class Checkpoint:
    """The tensors of a folder.

    Attributes:
        files: the safetensors, sorted.
        entries: the tensors by name.
    """

    def __init__(self, folder: Path) -> None:
        self.files, placed = _find(folder)
        self.entries: dict[str, Entry] = {}
        for file in self.files:
            self.entries.update(_read_header(file))
        for name, file in placed.items():
            if name not in self.entries:
                raise IntegrityError(f"{file}: lacks the tensor {name}, which {INDEX} finds in it: fetch it again")

    @property
    def shapes(self) -> dict[str, Shape]:
        """By name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def dtypes(self) -> list[str]:
        """The types that occur, sorted."""
        return sorted({TYPES[entry.dtype] for entry in self.entries.values()})

    def read(self, need: Tensors) -> Tensor:
        """The tensor, or the row that is needed of it, as the file has it.

        Raises:
            IntegrityError: it can't be read, or a value is nan or infinite.
        """
        file = self.entries[need.name].file
        with opened(file, REMEDY) as found:
            tensor: Tensor = found.get_tensor(need.name) if need.row is None else found.get_slice(need.name)[need.row]
        if not tensor.isfinite().all():
            where = f"{need.name}[{need.row}]" if need.row is not None else need.name
            what = "nan" if tensor.isnan().any() else "infinity"
            raise IntegrityError(f"{file}: {where}: holds {what}: no model has that: fetch it again, or train it anew")
        return tensor


def _find(folder: Path) -> tuple[list[Path], Mapping[str, Path]]:
    """The files, and by an index what lies in which."""
    found = find_weights(folder, REMEDY)
    if found is not None:
        return found
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise AvaError(
            f"{folder / pickled[0]}: is a pickle, which can run code: nothing but safetensors is read: save the model"
            " with Transformers' save_pretrained, which writes them"
        )
    raise AvaError(f"{folder}: has neither {SINGLE} nor {INDEX}: give a folder as save_pretrained leaves it")


def _read_header(file: Path) -> dict[str, Entry]:
    found = {}
    with opened(file, REMEDY) as read:
        for name in read.keys():  # noqa: SIM118  not a mapping
            view = read.get_slice(name)
            found[name] = Entry(file, view.get_dtype(), tuple(view.get_shape()))
    for name, entry in found.items():
        if entry.dtype not in TYPES:
            raise AvaError(
                f"{file}: {name} is {entry.dtype}: must be one of {', '.join(TYPES)}: give the model that was quantised"
            )
    return found
