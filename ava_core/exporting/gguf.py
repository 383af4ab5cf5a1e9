"""A trained model as GGUF, through Transformers' format and llama.cpp's own converter."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoConfig

from ava_core.errors import AvaError
from ava_core.exporting.transformers_folder import export_model
from ava_core.generation.loading import unreadable
from ava_core.models import EnhancedMoEConfig
from ava_core.models.conversion.peers import PEERS
from ava_core.models.conversion.rules import Rule, check
from ava_core.models.pretrained import GIVE_MODEL
from ava_core.runtime.manifest import verified

log = logging.getLogger(__name__)
TYPES = ("f32", "f16", "bf16", "q8_0")
"""Tensor types that the converter writes; `llama-quantize` makes the smaller ones (Q4_K and the like) of these."""
CONVERTER = "convert_hf_to_gguf.py"
ERROR_LINES = 3


def _rules(config: EnhancedMoEConfig, target: str) -> tuple[Rule, ...]:
    """What llama.cpp fixes in an architecture, where Transformers has a switch."""
    heads = config.num_attention_heads
    common = (
        Rule("sliding_window", lambda value: value is None, "null", "its attention has no window"),
        Rule(
            "rope_parameters",
            lambda value: value["rope_type"] == "default",
            "unscaled",
            "its file isn't known to scale",
        ),
    )
    if target != "olmoe":
        return (*common, Rule("normalize_router_weights", bool, "true", "its router weights always sum to one"))
    return (
        *common,
        Rule("normalize_router_weights", lambda value: not value, "false", "its router weights are never rescaled"),
        Rule("rms_norm_eps", lambda value: value == 1e-5, "1e-5", "its norms have no other"),
        Rule("num_key_value_heads", lambda value: value == heads, "num_attention_heads", "its norm of keys is as wide"),
    )


def export_gguf(folder: Path, output: Path, llama_cpp: Path, kind: str) -> str:
    """Write the model in `folder` as one GGUF file, and return the architecture's name.

    Args:
        folder: a model folder.
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
    with verified(folder):
        target = _target_of(folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as name:
        source, partial = Path(name, "model"), Path(name, "model.gguf")
        export_model(folder, target, source, tied=False)
        _convert(llama_cpp, source, partial, kind)
        partial.replace(output)
    return target


def _target_of(folder: Path) -> str:
    """olmoe, mixtral or qwen3_moe: the one with the model's `qk_norm`, in which the three differ."""
    config = None
    if (folder / "config.json").is_file():
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the library raises what its parsers raise
            raise unreadable(folder / "config.json", error) from error
    if not isinstance(config, EnhancedMoEConfig):
        raise AvaError(f"{folder}: holds no model of Ava's: {GIVE_MODEL}")
    target = next(name for name, peer in PEERS.items() if peer.qk_norm == config.qk_norm)
    try:
        check(config, _rules(config, target), f"llama.cpp's {target}")
    except ValueError as error:
        raise AvaError(f"{folder}: {error}") from error
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
