"""The presets shipped under configs/, `auto`, which picks one by the hardware, and overlays for kinds of hardware."""

from __future__ import annotations

import difflib
from pathlib import Path

from ava_core.config import hardware
from ava_core.errors import ConfigError, shorten

_PACKAGED = Path(__file__).with_name("files")
_CHECKOUT = Path(__file__).resolve().parents[2] / "configs"
FOLDER = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
"""A wheel carries configs/ inside the package; a checkout has it at its root."""


def names() -> list[str]:
    """All presets but `auto`, as `params.yaml` names them."""
    found = (path.relative_to(FOLDER).with_suffix("").as_posix() for path in sorted(FOLDER.glob("?pu/*.yaml")))
    return list(found)


def hardware_names() -> list[str]:
    """What the key `hardware` may be."""
    return [path.stem for path in sorted((FOLDER / "hardware").glob("*.yaml"))]


def find_hardware(name: str, origin: str) -> Path:
    """The file of an overlay for a machine.

    Args:
        name: one of `hardware_names()`.
        origin: the layer that named it, for the message.

    Raises:
        ConfigError: there is no such overlay.
    """
    if name not in hardware_names():
        close = difflib.get_close_matches(name, hardware_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(hardware_names())}"
        raise ConfigError(f"{origin}: hardware = {shorten(name)}: unknown hardware: {hint}")
    return FOLDER / "hardware" / f"{name}.yaml"


def shipped(path: Path) -> Path:
    """The file that `--config` names: itself, or the one under configs/ of that name, as in `hardware/a100`."""
    found = FOLDER / f"{path}.yaml"
    inside = found.resolve().is_relative_to(FOLDER.resolve())
    return found if not path.exists() and inside and found.is_file() else path


def find(name: str, origin: str) -> tuple[Path, str | None]:
    """The file of a preset; for `auto` also why it was chosen.

    Args:
        name: a name from `names()`, or `auto`.
        origin: the layer that named it, for the message.

    Raises:
        ConfigError: there is no such preset.
    """
    reason = None
    if name == "auto":
        name, reason = hardware.choose_preset(hardware.detect(), FOLDER / "auto" / "rules.yaml")
    if name not in names():
        close = difflib.get_close_matches(name, [*names(), "auto"], n=1)
        hint = f"did you mean {close[0]}?" if close else f"must be auto or one of {', '.join(names())}"
        raise ConfigError(f"{origin}: preset = {shorten(name)}: unknown preset: {hint}")
    return FOLDER / f"{name}.yaml", reason


def label(path: Path) -> str:
    """How messages name a preset's file, wherever Ava is installed."""
    return f"configs/{path.relative_to(FOLDER).as_posix()}"
