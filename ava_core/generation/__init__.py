"""Loading a model, as trained or as quantised, and letting it continue prompts.

Importing the package is cheap, so that a command line can check its flags; PyTorch comes with the first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ava_core.generation.strategies import STRATEGIES

if TYPE_CHECKING:
    from ava_core.generation.decoding import generate
    from ava_core.generation.loading import load_model

__all__ = ["STRATEGIES", "generate", "load_model"]
_HOMES = {"generate": "ava_core.generation.decoding", "load_model": "ava_core.generation.loading"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
