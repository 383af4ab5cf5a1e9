"""The float model that is exported, from a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.files import parse_json
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.pretrained import GIVE_MODEL, load_pretrained
from ava_core.models.weight_files import WEIGHTS
from ava_core.runtime.manifest import verified

NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", "training.json")
_REMEDY = "restore the folder or make it anew"
CONFIGURATIONS = ("config.json", "generation_config.json")
"""What is copied beside the ONNX files, where it is there."""
RUNTIME_FILES = (*CONFIGURATIONS, "tokenizer.json", "tokenizer_config.json")
"""What stands beside the ONNX files in the end."""


@dataclass(frozen=True)
class Original:
    """A trained model.

    Attributes:
        model: in evaluation mode, float32.
        sequence_length: the training context, tokens; of an imported model the windows that it is measured in.
        num_parameters: a matrix that is used twice counts once.
    """

    model: EnhancedMoEForCausalLM
    sequence_length: int
    num_parameters: int


def load_original(folder: Path) -> Original:
    """Load a model folder.

    Raises:
        AvaError: a file is missing.
        IntegrityError: a file isn't the one in the manifest, can't be read, or the weights don't fit the configuration.
    """
    with verified(folder):
        return _load(folder)


def _load(folder: Path) -> Original:
    for name in NEEDED:
        if not (folder / name).is_file():
            raise AvaError(f"{folder / name}: no such file: {GIVE_MODEL}")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise AvaError(f"{folder / WEIGHTS[0]}: no such file: {GIVE_MODEL}")
    try:
        sequence_length = int(parse_json((folder / "training.json").read_bytes())["sequence_length"])
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"{folder / 'training.json'}: can't be read ({error}): {_REMEDY}") from error
    try:
        model, report = load_pretrained(EnhancedMoEForCausalLM, folder)
    except Exception as error:  # Transformers and safetensors raise many kinds for a damaged file
        reason = first_line(error)
        raise IntegrityError(f"{folder}: the model can't be loaded ({reason}): {_REMEDY}") from error
    faults = {kind: sorted(map(str, names)) for kind, names in report.items() if kind.endswith("_keys") and names}
    if faults:
        described = "; ".join(f"{kind.replace('_', ' ')} {', '.join(names)}" for kind, names in sorted(faults.items()))
        raise IntegrityError(f"{folder / 'model.safetensors'}: doesn't fit config.json ({described}): {_REMEDY}")
    return Original(model.eval(), sequence_length, sum(parameter.numel() for parameter in model.parameters()))
