"""The models of one evaluation: the trained one and its quantised versions."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.data.reencoding import ModelText
from ava_core.data.shards import document_names
from ava_core.data.tokenizer_identity import digest_of
from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.evaluation.losses import FLOAT
from ava_core.models.pretrained import GIVE_MODEL
from ava_core.runtime import manifest
from ava_core.steps.schemes import SCHEMES

log = logging.getLogger(__name__)
_QUANTIZED = "give the output folder of `ava quantize`"
NAMED_DOCUMENTS = 5
"""Documents whose names tell other shards' text, at most."""
RUNTIME_FILES = (
    "model*.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""Files that a float model needs at run time: their sizes are its `model_bytes`, as `ava quantize` counts its own."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model to measure.

    Attributes:
        name: "float", or the scheme of a quantised model.
        folder: where it lies.
        record: its manifest.
        sizes: metrics of the step that made it: `model_bytes`, and of a quantised model the parity with the float one.
    """

    name: str
    folder: Path
    record: manifest.Manifest
    sizes: dict[str, float]

    @property
    def prefix(self) -> str:
        """What the names of its figures in metrics.json begin with: nothing, or the scheme and `_`."""
        return "" if self.name == FLOAT else f"{self.name}_"


def find_candidates(model: Path, quantized: list[Path]) -> list[Candidate]:
    """The float model, then the quantised ones in the order of `ava_core.steps.schemes.SCHEMES`.

    Raises:
        ConfigError: two folders of one scheme, or a model quantised from another one than `model`.
        IntegrityError: a JSON file can't be read, or quantization.json names no known scheme.
        AvaError: a folder is no output of its step.
    """
    record = manifest.read(model)
    size = sum(path.stat().st_size for pattern in RUNTIME_FILES for path in model.glob(pattern))
    found = {FLOAT: Candidate(name=FLOAT, folder=model, record=record, sizes={"model_bytes": size})}
    for folder in quantized:
        scheme = _read_json(folder / "quantization.json", _QUANTIZED).get("scheme")
        if scheme not in SCHEMES:
            raise IntegrityError(
                f"{folder / 'quantization.json'}: scheme {scheme}: must be one of {', '.join(SCHEMES)}"
            )
        if scheme in found:
            raise ConfigError(
                f"--quantized {folder}: is {scheme} as {found[scheme].folder} is: give one folder of each scheme"
            )
        made_from = manifest.read(folder)
        if made_from.inputs.get("model", record.digest) != record.digest:
            raise ConfigError(
                f"--quantized {folder}: was made from another model than {model}: run `ava quantize` on it"
            )
        sizes = _read_json(folder / "metrics.json", _QUANTIZED)
        found[scheme] = Candidate(name=scheme, folder=folder, record=made_from, sizes=sizes)
    return [found[name] for name in (FLOAT, *SCHEMES) if name in found]


def read_training(model: Path) -> dict[str, Any]:
    """`training.json`: context, parameters and corpus of a model; nothing is known of the corpus of an imported one.

    Raises:
        AvaError: the folder has none.
        IntegrityError: it isn't JSON, lacks a field, or its `sequence_length` is no number of tokens.
    """
    record = _read_json(model / "training.json", GIVE_MODEL)
    for name in ("sequence_length", "parameters", "active_parameters", "corpus"):
        if name not in record:
            raise IntegrityError(f"{model / 'training.json'}: lacks {name}: restore the folder or make it anew")
    length = record["sequence_length"]
    if not isinstance(length, int) or length < 1:
        raise IntegrityError(f"{model / 'training.json'}: sequence_length = {length}: must be a number of tokens")
    return record


def is_own_text(model: Path, shards: Path) -> bool:
    """Whether the model was trained on these shards; a warning if not, for only their own test split is held out from
    it by construction."""
    trained_on = manifest.read(model).inputs.get("shards")
    if trained_on == manifest.read(shards).digest:
        return True
    log.warning(
        "evaluate: %s are not the shards that %s was trained on: their test split may hold text of its training",
        shards,
        model,
    )
    return False


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise AvaError(f"{path}: no such file: {remedy}")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise IntegrityError(f"{path}: can't be read ({error}): restore the folder or make it anew") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path}: is not a JSON object: restore the folder or make it anew")
    return value


def describe_text(text: ModelText, shards: Path, split: str) -> dict[str, Any]:
    """Which text was scored, where it isn't that of the shards which the model was trained on."""
    return {
        "shards": manifest.read(shards).digest,
        "documents": document_names(shards, split)[:NAMED_DOCUMENTS],
        "tokenizer": digest_of(shards / "tokenizer"),
        "reencoded": text.reencoded,
    }


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of history.jsonl; none if the model came without a training record."""
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except ValueError as error:
        raise IntegrityError(f"{path}: can't be read ({error}): restore the folder or train again") from error
