"""A trained model as GGUF, through Transformers' format and llama.cpp's own converter."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformers import AutoConfig

from ava_core.errors import AvaError
from ava_core.exporting.transformers_folder import export_model
from ava_core.models import EnhancedMoEConfig

log = logging.getLogger(__name__)
TYPES = ("f32", "f16", "bf16", "q8_0")
"""What the converter writes; `llama-quantize` makes the smaller ones of these."""
CONVERTER = "convert_hf_to_gguf.py"
ERROR_LINES = 3


class _Rule(NamedTuple):
    """What llama.cpp fixes in an architecture, where Transformers has a switch."""

    field: str
    holds: Callable[[EnhancedMoEConfig], bool]
    must_be: str


_NORMALISED = _Rule("normalize_router_weights", lambda config: bool(config.normalize_router_weights), "true")
_TARGETS: dict[str, tuple[str, tuple[_Rule, ...]]] = {
    "projection": (
        "olmoe",
        (
            _Rule("normalize_router_weights", lambda config: not config.normalize_router_weights, "false"),
            _Rule("rms_norm_eps", lambda config: config.rms_norm_eps == 1e-5, "1e-5"),
            _Rule(
                "num_key_value_heads",
                lambda config: config.num_key_value_heads == config.num_attention_heads,
                "num_attention_heads",
            ),
        ),
    ),
    "head": ("qwen3_moe", (_NORMALISED,)),
    "none": ("mixtral", (_NORMALISED,)),
}
"""By `qk_norm`: the architecture with just that one, and what llama.cpp asks of it beyond Transformers."""


def export_gguf(folder: Path, output: Path, llama_cpp: Path, kind: str) -> str:
    """Write the model in `folder` as one GGUF file, and return the architecture's name.

    Args:
        folder: output of `ava train`.
        output: the file; appears whole or not at all.
        llama_cpp: a checkout of llama.cpp, or `vendor/llama.cpp` in the source of `llama-cpp-python`. Its converter
            runs in a process of its own, with this environment's torch and transformers.
        kind: one of `TYPES`; norms and the router stay float32.

    Raises:
        AvaError: `output` exists, there is no converter, it failed, or the model has something that the architecture
            lacks.
    """
    if output.exists():
        raise AvaError(f"{output}: exists: give another --output, or remove it")
    if not (llama_cpp / CONVERTER).is_file():
        raise AvaError(f"{llama_cpp / CONVERTER}: not there: give the folder of llama.cpp's source as --llama-cpp")
    target = _target_of(folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as name:
        source, partial = Path(name, "model"), Path(name, "model.gguf")
        export_model(folder, target, source, tied=False)
        _convert(llama_cpp, source, partial, kind)
        partial.replace(output)
    return target


def _target_of(folder: Path) -> str:
    config = AutoConfig.from_pretrained(folder) if (folder / "config.json").is_file() else None
    if not isinstance(config, EnhancedMoEConfig):
        raise AvaError(f"{folder}: holds no model of Ava's: give the output folder of `ava train`")
    target, rules = _TARGETS[str(config.qk_norm)]
    for rule in rules:
        if not rule.holds(config):
            found = getattr(config, rule.field)
            raise AvaError(f"{folder}: {rule.field} = {found}: must be {rule.must_be} for llama.cpp's {target}")
    return target


def _convert(llama_cpp: Path, source: Path, output: Path, kind: str) -> None:
    # The converter imports `conversion` and `gguf` from its own folder, and reads nothing but the export.
    command = [sys.executable, "-m", "ava_core.exporting.gguf_converter", str(llama_cpp.resolve()), str(source)]
    command += ["--outfile", str(output), "--outtype", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not output.is_file():
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-ERROR_LINES:])
        raise AvaError(f"{llama_cpp / CONVERTER}: exit {done.returncode}: {said}")
    log.debug("%s", done.stderr)
