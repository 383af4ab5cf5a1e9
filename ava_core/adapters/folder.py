"""An adapter's folder: what PEFT writes, and beside it which model it is an update of.

`ava train` leaves one inside its model folder; it is whole without that. PEFT reads it as one of its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ava_core.adapters.layers import (
    adapter_state,
    add_adapter,
    import_peft,
    load_adapter_state,
    peft_config,
    settings_of,
)
from ava_core.config.adapter import AdapterConfig
from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.files import write_json
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.runtime.digests import digest_unchanged, digest_value
from ava_core.runtime.reading import read_object

if TYPE_CHECKING:
    from peft import LoraConfig

log = logging.getLogger(__name__)
FOLDER = "adapter"
"""Its name inside a model folder."""
SETTINGS, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
READ = frozenset(
    {
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "target_modules",
        "target_parameters",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
    }
)
"""Settings of PEFT's that say what is updated and how."""
UNREAD = frozenset(
    {
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "init_lora_weights",
        "megatron_core",
        "qalora_group_size",
    }
)
"""Those that say nothing of a finished adapter; any other must be what PEFT has by default."""
OF_OTHER_WEIGHTS = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Beginnings of `init_lora_weights` that change the base's weights as well."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read.

    Attributes:
        folder: where it lies.
        settings: of PEFT.
        base: digest of the model that it was trained on; empty where the folder doesn't say.
        digest: of its own files.
    """

    folder: Path
    settings: LoraConfig
    base: str
    digest: str

    def put_into(self, model: EnhancedMoEForCausalLM) -> None:
        """Add it to the model that it is an update of; see `require_base`.

        Raises:
            AvaError: it doesn't fit.
            IntegrityError: its weights can't be read.
        """
        try:
            add_adapter(model, self.settings)
            load_adapter_state(model, self._weights())
        except IntegrityError:
            raise
        except AvaError as error:
            raise AvaError(f"{self.folder}: {error}: give the model that it was trained on") from error

    def require_base(self, folder: Path, digest: str) -> None:
        """Refuse another model than its own.

        Args:
            folder: of a model.
            digest: of that folder's contents.

        Raises:
            AvaError: it was trained on another.
        """
        if not self.base:
            log.warning(
                "%s: doesn't say on which model it was trained: only names and shapes tell that it is %s",
                self.folder,
                folder,
            )
        elif self.base != digest:
            raise AvaError(
                f"{self.folder}: is an adapter of the model with the digest {self.base}, and {folder} has {digest}:"
                " give the model that it was trained on"
            )

    def _weights(self) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return {name: value.float() for name, value in load_file(self.folder / WEIGHTS).items()}
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.folder / WEIGHTS, error) from error


def write_adapter(folder: Path, model: EnhancedMoEForCausalLM, adapter: AdapterConfig, base: str) -> None:
    """Write the adapter in `model`.

    Args:
        folder: a new one.
        model: with the updates in it.
        adapter: by which they were put there.
        base: digest of the model without them.
    """
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(adapter_state(model), folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / SETTINGS, settings_of(peft_config(adapter)))
    write_json(folder / BASE, {"base": base, "files": _files(folder)})


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder, or in a model folder that `ava train` left with one.

    Raises:
        AvaError: there is none, or it has something that can't be merged; the message names it.
        IntegrityError: a file can't be read, or isn't the one that was written.
    """
    where = folder if (folder / SETTINGS).is_file() else folder / FOLDER
    if not (where / SETTINGS).is_file():
        raise AvaError(f"{folder}: holds no adapter: give a folder with {SETTINGS}, as `ava train` or PEFT leaves it")
    for name in (WEIGHTS, SETTINGS):
        if not (where / name).is_file():
            raise AvaError(f"{where / name}: no such file: only safetensors is read: save the adapter with PEFT anew")
    files = _files(where)
    return Adapter(where, _read_settings(where / SETTINGS), _read_base(where, files), digest_value(files))


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's, and no model's."""
    return (folder / SETTINGS).is_file() and not (folder / "config.json").is_file()


def _files(folder: Path) -> dict[str, str]:
    return {name: digest_unchanged(folder / name) for name in (SETTINGS, WEIGHTS)}


def _read_base(folder: Path, files: dict[str, str]) -> str:
    path = folder / BASE
    if not path.is_file():
        return ""
    record = read_object(path)
    base, written = record.get("base"), record.get("files")
    if not isinstance(base, str) or not isinstance(written, dict):
        raise IntegrityError(f"{path}: can't be read (base or files is missing): restore the folder")
    for name, digest in files.items():
        if written.get(name) != digest:
            raise IntegrityError(f"{folder / name}: its bytes are not those in {BASE}: restore the folder")
    return base


def _read_settings(path: Path) -> LoraConfig:
    values = read_object(path)
    if values.get("peft_type") != "LORA":
        raise AvaError(f"{path}: peft_type = {values.get('peft_type')}: only LORA can be merged (DoRA is one, too)")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(OF_OTHER_WEIGHTS):
        raise AvaError(
            f"{path}: init_lora_weights = {start}: the training changed the base's own weights as well: merge it with"
            " PEFT, where these are"
        )
    lora = import_peft().LoraConfig
    default = settings_of(lora())
    for name, value in values.items():
        if name not in READ | UNREAD and value != default.get(name) and value:
            raise AvaError(f"{path}: {name} = {value}: can't be merged here: merge it with PEFT's merge_and_unload()")
    try:
        return lora(task_type="CAUSAL_LM", **{name: values[name] for name in READ if name in values})
    except (TypeError, ValueError) as error:
        raise IntegrityError(f"{path}: can't be read ({first_line(error)}): restore the folder") from error


def _unreadable(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(f"{path}: can't be read ({first_line(error)}): restore the folder")
