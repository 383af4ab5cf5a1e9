"""Inputs that the configuration may name as well as a flag, such as `train.init`: a folder, or a registered model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.steps.spec import Input, StepSpec, flag

if TYPE_CHECKING:
    from ava_core.config import AvaConfig
    from ava_core.config.model import ModelConfig

DOWNLOADS = "models"
"""Folder of the work folder for registered models; all machines of a training see it."""
BEGINNING = "train.init"
"""What a training begins from, whose architecture it has."""
CHECKPOINTS = ("checkpoint.json", "step-*/checkpoint.json", "checkpoints/step-*/checkpoint.json")
"""What tells a checkpoint, or a folder of them, from a model."""


def as_settings(spec: StepSpec, flags: Mapping[str, Any]) -> list[str]:
    """What the flags say, as --set has it."""
    given = ((port, flags.get(port.name)) for port in spec.named_inputs)
    return [
        # On the command line, paths count from the current folder.
        f"{port.setting}={json.dumps(name if '://' in name or not port.beside else str(Path(name).absolute()))}"
        for port, name in given
        if name is not None
    ]


def find_named(
    spec: StepSpec, config: AvaConfig, work: Path, inputs: Mapping[str, list[Path]] | None = None
) -> dict[str, list[Path]]:
    """The folders that the configuration names, by input.

    Args:
        spec: the step.
        config: what was resolved.
        work: folder where registered models are kept.
        inputs: the other inputs, for names that count from one of them.

    Raises:
        ConfigError: what is named can't be a finished output.
        AvaError: the registry has no such model, or doesn't answer.
    """
    found = {}
    for port in spec.named_inputs:
        beside = next(iter((inputs or {}).get(port.beside, ())), Path())
        folder = _folder(port, value, work, beside) if (value := _value(config, port)) else None
        found[port.name] = [folder] if folder else []
    return found


def find_registered(port: Input, value: str, work: Path) -> list[Path]:
    """The folder that the flag of an input names; raises as `find_named`."""
    folder = _folder(port, value, work)
    return [folder] if folder else []


def architecture_reader(spec: StepSpec, work: Path) -> Callable[[str], Mapping[str, Any] | None]:
    """Reads the section `model` of what `train.init` names; strictly in the step that begins from it.

    Where it can't be read, the other steps go by the file of parameters alone: they need no model of that.
    """
    from ava_core.config.inheritance import find_architecture, read_architecture
    from ava_core.runtime import manifest
    from ava_core.steps.tools import makers

    port = next((port for port in spec.named_inputs if port.setting == BEGINNING), None)
    if port is None:
        return find_architecture

    def read(name: str) -> Mapping[str, Any] | None:
        folder = _folder(port, name, work)
        if folder is None:
            return None
        manifest.verify(folder, *makers(port.kind))  # or a damaged file would be taken for a strange one
        return read_architecture(folder)

    return read


def architecture_of(model: Path) -> ModelConfig:
    """The section `model` that a finished model has; raises as `ava_core.config.inheritance.read_architecture`."""
    from ava_core.config.inheritance import read_architecture
    from ava_core.config.model import ModelConfig

    return ModelConfig.model_validate(read_architecture(model))


def refuse_output_among(inputs: Mapping[str, list[Path]], spec: StepSpec, output: Path) -> None:
    """Refuse an output that would replace what it is made from, or lie in it.

    Raises:
        ConfigError: it would.
    """
    from ava_core.errors import ConfigError

    for port in spec.named_inputs:
        for folder in inputs[port.name]:
            a, b = folder.resolve(), output.resolve()
            if a.is_relative_to(b) or b.is_relative_to(a):
                raise ConfigError(
                    f"--output {output}: is what {port.setting} = {folder} names, or lies in it: name another folder"
                )


def _value(config: AvaConfig, port: Input) -> str | None:
    value: Any = config.model_dump(by_alias=True)
    for name in port.setting.split("."):
        value = value[name]
    return value


def _folder(port: Input, name: str, work: Path, beside: Path = Path()) -> Path | None:
    """The folder, or a tokenizer's file; None in a process that only helps the first rank, which looks it up."""
    from ava_core.config.register import REGISTERED
    from ava_core.errors import ConfigError

    asked = port.setting or flag(port.name)
    if name.startswith(REGISTERED):
        from ava_core.distributed.ranks import Ranks

        if not Ranks.from_environment().is_first:
            return None
        from ava_core.registry import download_model
        from ava_core.tracking import tracking_uri

        return download_model(name, tracking_uri(), work.absolute() / DOWNLOADS).folder
    if "://" in name:
        raise ConfigError(f"{asked} = {name}: must be a folder, or models:/NAME@ALIAS: fetch it first")
    folder = (beside / name).absolute()
    if port.kind is None:  # no step need have made it
        _verify_made(folder)
    elif any(next(folder.glob(pattern), None) for pattern in CHECKPOINTS):
        instead = f"; give --resume {name}, with --reset-optimizer if only its weights are wanted"
        raise ConfigError(
            f"{asked} = {name}: is a checkpoint: {flag(port.name)} takes a finished model"
            f"{instead if port.setting == BEGINNING else ''}"
        )
    return folder


def _verify_made(folder: Path) -> None:
    from ava_core.runtime import manifest

    if (folder / manifest.NAME).is_file():
        manifest.verify(folder)
