"""Import hook that adds our architecture to Transformers' Auto classes, in every program of an environment with Ava.

`AutoModelForCausalLM.from_pretrained(FOLDER)` in a script of somebody else's, and `lm_eval --model hf`, find models by
tables of names that only Transformers fills: no option lets a program import what would register another architecture.
So the wheel installs `ava_moe.pth`, whose line Python runs at its start and which imports this module: a finder in
`sys.meta_path`. It costs one comparison per import; our names enter the tables when these are imported, and our classes
are imported when they are asked for. Nothing else is.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `importlib.abc` would cost every program of the environment some milliseconds
    from types import ModuleType
    from typing import Any

MODEL_TYPE = "ava_moe"
HOME = f"transformers.models.{MODEL_TYPE}"
"""Where the Auto classes look for the classes of a model type."""
TABLES = {
    "transformers.models.auto.configuration_auto": {"CONFIG_MAPPING_NAMES": "EnhancedMoEConfig"},
    "transformers.models.auto.modeling_auto": {
        "MODEL_MAPPING_NAMES": "EnhancedMoEModel",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "EnhancedMoEForCausalLM",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "EnhancedMoEForSequenceClassification",
    },
}
"""Class by table, by the module of the table."""


def install() -> None:
    """Put the finder first in `sys.meta_path`, once; tables that are imported already get our names at once."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name in TABLES.keys() & sys.modules.keys():
        _enter(sys.modules[name])


def _enter(module: ModuleType) -> None:
    """Add our model type to the module's tables.

    Another version of Transformers may have other tables; `import ava_core.models` still registers the classes.
    """
    for table, name in TABLES[module.__name__].items():
        getattr(module, table, {})[MODEL_TYPE] = name


class _Finder:
    """Finds the module `HOME`, and wraps the loaders of the modules in `TABLES`; leaves all others to Python."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == HOME:
            return ModuleSpec(name, _Home())  # type: ignore[arg-type]
        if name not in TABLES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Filled(spec.loader)  # type: ignore[assignment]
        return spec


class _Filled:
    """A module's own loader, wrapped: once the module has run, our names enter its tables."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _enter(module)


class _Home:
    """Loader of the module `HOME`, which has no file: its attributes are the classes of `ava_core.models`."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        ours = importlib.import_module("ava_core.models")
        module.__dict__.update({name: getattr(ours, name) for name in ours.__all__})


install()
