"""What a result was measured on: processor, its matrix instructions, threads and versions. No name of a machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers

FLAGS = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512f", "avx2")
"""Instruction sets that decide the speed of bf16 products, fastest first."""


def describe(device: str, threads: int) -> dict[str, Any]:
    """Processor (and GPU), flags, threads, and versions of torch and transformers."""
    found: dict[str, Any] = {
        "processor": "unknown",
        "flags": [],
        "threads": threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            found["processor"] = value
        elif key == "flags":
            found["flags"] = [flag for flag in FLAGS if flag in value.split()]
            break
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def line(hardware: dict[str, Any]) -> str:
    """One line for a report."""
    processor = f"{hardware['gpu']}, " if "gpu" in hardware else ""
    processor += f"{hardware['processor']} ({', '.join(hardware['flags']) or 'no vector flags'})"
    versions = f"torch {hardware['torch']}, transformers {hardware['transformers']}"
    return f"{processor}, {hardware['threads']} threads, {versions}"


def slug(hardware: dict[str, Any]) -> str:
    """File name for results of this hardware: `amd-epyc-avx512-bf16-2-threads`."""
    fastest = hardware["flags"][0] if hardware["flags"] else "scalar"
    text = hardware.get("gpu") or f"{hardware['processor']} {fastest} {hardware['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
