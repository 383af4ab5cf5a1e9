"""The parameters of a signature (`entries.py` says how they read): tensors with type and shape, sizes, numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "i64": torch.int64, "bool": torch.bool}

Sizes = dict[str, int]


@dataclass(frozen=True, slots=True)
class Dimension:
    """times * size + plus, or the product of all leading dimensions."""

    size: str
    times: int = 1
    plus: int = 0
    leading: bool = False

    @classmethod
    def parse(cls, text: str) -> Dimension:
        """From `R`, `2F`, `N+1`, `*R` or a number."""
        found = re.fullmatch(r"(\*?)(\d*)([A-Za-z]*)(?:\+(\d+))?", text)
        assert found, text
        leading, number, size, plus = found.groups()
        if not size:
            return cls("", 0, int(number))
        return cls(size, int(number or 1), int(plus or 0), bool(leading))

    def holds(self, length: int, sizes: Sizes) -> bool:
        """Whether a dimension of that length fits the sizes known so far; a size's first occurrence binds it."""
        if not self.size:
            return length == self.plus
        if self.size not in sizes:
            size, rest = divmod(length - self.plus, self.times)
            if rest or size < 0:
                return False
            sizes[self.size] = size
        return length == self.times * sizes[self.size] + self.plus


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor among the parameters."""

    name: str
    dtype: torch.dtype
    shape: tuple[Dimension, ...]
    text: str
    optional: bool

    def check(self, value: Any, sizes: Sizes, leads: dict[str, torch.Size]) -> None:
        """Hold a tensor against its type and shape, and learn sizes from it.

        Raises:
            ValueError: its type, device or shape is another, or it isn't contiguous.
        """
        if value is None and self.optional:
            return
        if not isinstance(value, Tensor):
            raise ValueError(f"{self.name} = {value!r}: must be a tensor")
        if value.dtype != self.dtype or not value.is_cpu:
            kind = str(self.dtype).removeprefix("torch.")
            raise ValueError(f"{self.name} is {value.dtype} on {value.device}: must be {kind} in the CPU's memory")
        shape: Sequence[int] = value.shape
        first = self.shape[0]
        if first.leading:
            lead = value.shape[: len(shape) - len(self.shape) + 1]
            shape = (lead.numel(), *shape[len(lead) :])
            if leads.setdefault(first.size, lead) != lead:
                raise self._misshapen(value, {first.size: list(leads[first.size])})
        if len(shape) != len(self.shape) or not all(d.holds(n, sizes) for d, n in zip(self.shape, shape, strict=True)):
            raise self._misshapen(value, sizes)
        if not value.is_contiguous():
            raise ValueError(f"{self.name} has strides {value.stride()}: must be contiguous")

    def _misshapen(self, value: Tensor, sizes: Mapping[str, object]) -> ValueError:
        own = {dimension.size for dimension in self.shape}
        known = ", ".join(f"{size} = {length}" for size, length in sizes.items() if size in own)
        return ValueError(
            f"{self.name} has shape {list(value.shape)}: must be [{self.text}]{known and f' with {known}'}"
        )


@dataclass(frozen=True, slots=True)
class Size:
    """A size among the C parameters, inferred from the tensors; 0 if the optional tensors that bind it are None."""

    name: str


@dataclass(frozen=True, slots=True)
class Number:
    """A float32 among the parameters."""

    name: str


def parse(text: str) -> Operand | Size | Number:
    """A parameter from its text in a signature."""
    found = re.fullmatch(r"(\w+):(\w+)\[(.*)\](\??)", text)
    if found:
        name, kind, shape, optional = found.groups()
        dimensions = tuple(Dimension.parse(dimension) for dimension in shape.split(","))
        return Operand(name, TYPES[kind], dimensions, shape.replace(",", ", "), bool(optional))
    return Number(text.removesuffix(":float")) if text.endswith(":float") else Size(text)
