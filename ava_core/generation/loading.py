"""Loads a model and its tokenizer from a model folder, or from the output folder of `ava quantize`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import ava_core.models  # noqa: F401  registers the architecture with AutoModelForCausalLM
from ava_core.data.tokenizer import CONFIG_FILE, FILE, load_tokenizer
from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.models.pretrained import GIVE_MODEL, load_pretrained
from ava_core.models.weight_files import WEIGHTS
from ava_core.runtime.manifest import adapter_line, verified

ONNX_NAME = "model.onnx"
CONFIG = "config.json"


def load_model(folder: Path, threads: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load what is in `folder`: `model.onnx` with ONNX Runtime, else safetensors with PyTorch.

    Weights are float32 and the model is in evaluation mode, on a GPU where there is one. The folder is verified against
    its manifest; the log says if it has none. Nothing is fetched, nothing is unpickled, no code of the folder's is run.

    Args:
        folder: a model in the layout of Transformers, or one exported to ONNX.
        threads: CPU threads, of the whole process for PyTorch; 0 keeps the present number.

    Raises:
        AvaError: there is no such folder, or a file is missing; the message names it.
        IntegrityError: a file isn't the one in the manifest, or can't be read.
    """
    folder = Path(folder)
    _require_files(folder)
    if threads:
        torch.set_num_threads(threads)
    with verified(folder):
        tokenizer = load_tokenizer(folder)
        if (folder / ONNX_NAME).is_file():
            from ava_core.onnx.runtime import load_onnx

            model: PreTrainedModel = load_onnx(folder, threads)
        else:
            model = _load_torch(folder)
    _require_fit(folder, model, tokenizer)
    return model, tokenizer


def _require_files(folder: Path) -> None:
    remedy = f"{GIVE_MODEL}, or a quantised one, as `ava quantize` does"
    if not folder.is_dir():
        raise AvaError(f"{folder}: no such folder: {remedy}")
    if line := adapter_line(folder):
        raise AvaError(line)
    for name in (CONFIG, FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise AvaError(f"{folder}: has no {name}: {remedy}")
    if not any((folder / name).is_file() for name in (ONNX_NAME, *WEIGHTS)):
        raise AvaError(f"{folder}: has neither {WEIGHTS[0]} nor {ONNX_NAME}: {remedy}")


def _load_torch(folder: Path) -> PreTrainedModel:
    try:
        model, report = load_pretrained(AutoModelForCausalLM, folder)
    except Exception as error:  # safetensors, JSON and shape errors have no common base
        raise unreadable(folder, error) from error
    if report["missing_keys"]:
        raise IntegrityError(
            f"{folder / WEIGHTS[0]}: lacks the weight {min(report['missing_keys'])}: restore the folder or make it anew"
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def unreadable(path: Path, error: Exception) -> IntegrityError:
    """The error for a file that a library can't read, or only by running code that lies beside it."""
    if "trust_remote_code" in str(error):
        return IntegrityError(
            f"{path}: asks for code of its own to be run (auto_map): Ava runs none: give a model of Ava's or of an"
            " architecture that Transformers knows"
        )
    reason = first_line(error)
    return IntegrityError(f"{path}: can't be read ({reason}): restore the folder or run its step again")


def _require_fit(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    entries = 1 + max(tokenizer.get_vocab().values())  # not its length, for ids may have holes
    if entries > model.config.vocab_size:
        raise IntegrityError(
            f"{folder / FILE}: has {entries} entries, the model's vocab_size is"
            f" {model.config.vocab_size}: they don't belong together"
        )
