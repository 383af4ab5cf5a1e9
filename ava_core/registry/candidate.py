"""The candidate for registration: a model, its quantised forms, and the evaluation that measured exactly these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.errors import AvaError, IntegrityError
from ava_core.origin import Origin, read_origin
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_value
from ava_core.runtime.work import timings_path

PARENT = "init"
"""Input of `ava train`: the model that it begins from."""
# Figures of train and quantize that are about the step, not the model, and would collide between steps.
STEP_FIGURES = ("wall_seconds",)
EVALUATION_ARTIFACT = "evaluation"
"""What the evaluation's folder is called among a version's artifacts."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that was measured.

    Attributes:
        model: a model folder.
        quantized: output folders of quantize, by scheme.
        evaluation: output folder of evaluate.
        digest: digest of the evaluation's contents; it identifies the registration.
        model_digest: digest of the model folder's contents.
        shards_digest: digest of the shards that the model was trained on; empty for one that was not trained here.
        origin: where the model comes from; None for one that was trained here from the beginning.
        figures: final figures of train and evaluate, and of quantize with the scheme and an underscore before them.
            Those of clocks and memory meters are among them, where the files beside the folders are still there.
        corpus: documents, tokens and bytes per split of the text that it was trained on.
        text: what tells the text that the evaluation scored from others; empty if it doesn't say.
        manifests: the manifests, by `model`, scheme, and `evaluation`.
    """

    model: Path
    quantized: Mapping[str, Path]
    evaluation: Path
    digest: str
    model_digest: str
    shards_digest: str
    origin: Origin | None
    figures: Mapping[str, float]
    corpus: Mapping[str, float]
    text: str
    manifests: Mapping[str, manifest.Manifest]

    @property
    def index(self) -> str:
        """Digest of the index of passages that the evaluation measured beside the model; empty without one."""
        return self.manifests["evaluation"].inputs.get("index", "")

    @property
    def parent_digest(self) -> str:
        """Digest of the model that the training began from; empty for one with fresh weights."""
        return self.manifests["model"].inputs.get(PARENT, "")

    @property
    def artifacts(self) -> dict[str, Path]:
        """The folders that the registered model consists of, by name; others are compared with its evaluation."""
        return {"model": self.model, **self.quantized, EVALUATION_ARTIFACT: self.evaluation}


def read_candidate(
    model: Path, quantized: Sequence[Path], evaluation: Path, digests: Mapping[str, str] | None = None
) -> Candidate:
    """Read the folders and check that they belong together. Their files were verified by `run_step`.

    Args:
        model: a model folder.
        quantized: output folders of quantize.
        evaluation: output folder of evaluate.
        digests: digests of the inputs as `run_step` verified them.

    Raises:
        AvaError: the evaluation measured another model, or not all of these quantised ones.
        IntegrityError: a file of figures can't be read.
        ValueError: the evaluation isn't the one of `digests`.
    """
    manifests = {"model": manifest.read(model), "evaluation": manifest.read(evaluation)}
    model_digest = manifests["model"].digest
    by_scheme: dict[str, Path] = {}
    for folder in quantized:
        contents = manifest.read(folder)
        scheme = contents.choices.get("scheme") or str(_read_json(folder / "quantization.json").get("scheme"))
        if scheme in by_scheme:
            raise AvaError(f"--quantized {folder}: there are two models quantised to {scheme}: give one of each scheme")
        by_scheme[scheme], manifests[scheme] = folder, contents
        _require(contents.inputs.get("model") == model_digest, folder, "was made from another model", "quantize")
    measured = manifests["evaluation"].inputs
    _require(measured.get("model") == model_digest, evaluation, "measured another model", "evaluate")
    measured_forms = {digest for name, digest in measured.items() if name.startswith("quantized")}
    for scheme in by_scheme:
        fits = manifests[scheme].digest in measured_forms
        _require(fits, evaluation, f"has not measured this {scheme} model", "evaluate")
    figures = {**_figures(model), **_figures(evaluation)}
    for scheme, folder in sorted(by_scheme.items()):
        figures.update({f"{scheme}_{name}": value for name, value in _figures(folder).items()})
    digest = manifests["evaluation"].digest
    if (digests or {}).get("evaluation", digest) != digest:
        raise ValueError("the evaluation was changed after it was verified")
    return Candidate(
        model=model,
        quantized=dict(sorted(by_scheme.items())),
        evaluation=evaluation,
        digest=digest,
        model_digest=model_digest,
        shards_digest=manifests["model"].inputs.get("shards", ""),
        origin=read_origin(model),
        figures=figures,
        corpus=_numbers(_read_json(model / "training.json").get("corpus", {})),
        text=_scored_text(_read_json(evaluation / "evaluation.json")),
        manifests=manifests,
    )


def _scored_text(contents: Mapping[str, Any]) -> str:
    """A digest of what an evaluation says of its text, whatever the tokens: bytes, documents, and how bz2 packs it."""
    try:
        protocol, references = contents["protocol"], contents["references"]
        return digest_value([protocol["bytes"], protocol["documents"], references["bz2_bits_per_byte"]])
    except (KeyError, TypeError):
        return ""


def _require(holds: bool, folder: Path, fault: str, step: str) -> None:
    if not holds:
        raise AvaError(f"{folder}: {fault}: run `ava {step}` with the --model and --quantized given here")


def _figures(folder: Path) -> dict[str, float]:
    """metrics.json, and what is still there of the timings beside the folder."""
    figures = _numbers(_read_json(folder / "metrics.json"))
    timings = timings_path(folder)
    if timings.is_file():
        figures.update({k: v for k, v in _numbers(_read_json(timings)).items() if k not in STEP_FIGURES})
    return figures


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {
        name: float(value)
        for name, value in sorted(values.items())
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: is missing: run the step that wrote its folder again") from error
    except ValueError as error:
        raise IntegrityError(f"{path}: is no JSON ({error}): run the step that wrote its folder again") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path}: must be an object: run the step that wrote its folder again")
    return value
