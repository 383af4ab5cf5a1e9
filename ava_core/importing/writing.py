"""A safetensors file written piece by piece: the library's own functions want all tensors in memory.

The format (https://github.com/huggingface/safetensors#format): 8 bytes with the header's length, the header as JSON
padded with spaces to a multiple of 8 bytes, the tensors. The bytes are those that the library would write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ava_core.models.conversion.recipes import Shape

TYPES = {"float32": (torch.float32, "F32"), "bfloat16": (torch.bfloat16, "BF16")}


def write_tensors(
    path: Path,
    shapes: Mapping[str, Shape],
    dtype: str,
    rows: Callable[[str], Iterable[Tensor]],
) -> None:
    """Write tensors of one type.

    Args:
        path: of the new file.
        shapes: by name.
        dtype: float32 or bfloat16, to which values are rounded.
        rows: gives a tensor's rows, in consecutive parts of its first axis.

    Raises:
        ValueError: the parts aren't as many values as the shape says.
    """
    kind, code = TYPES[dtype]
    order = sorted(shapes)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        end = start + prod(shapes[name]) * kind.itemsize
        header[name] = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            written = 0
            for part in rows(name):
                values = part.to(kind).contiguous()
                file.write(values.view(torch.uint8).numpy().data)
                written += values.numel()
            if written != prod(shapes[name]):
                raise ValueError(f"{name}: {written} values: must be {prod(shapes[name])}")
