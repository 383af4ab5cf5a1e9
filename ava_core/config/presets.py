"""The presets shipped under configs/, and `auto`, which picks one by the hardware."""

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
