"""What a registered version's environment needs: the packages that the code of a prediction imports.

Found by reading the sources: the import graph of a module is walked through our own modules, with the imports inside
functions. What an `if TYPE_CHECKING` holds counts only in a module with a `__getattr__`, which imports it
when it is asked for. MLflow would run the model to find out, and sees what else happens to be installed and imported.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from sys import stdlib_module_names

from ava_core.errors import AvaError

PACKAGE = Path(__file__).resolve().parents[1]


def requirements(module: str) -> list[str]:
    """The packages that `module` and all it needs import, as pinned requirements, sorted.

    Versions are those of this environment without local labels (`+cpu`), which indexes don't have.

    Raises:
        AvaError: one of them isn't installed here.
    """
    providers = _providers()
    found = {}
    for name, importer in foreign_imports(module).items():
        names = providers.get(name)
        if not names:
            raise AvaError(f"{name}, which {importer} imports, belongs to no installed package: run `make setup`")
        # Several share a name when parts of it are packages of their own (mlflow-skinny): the one of that name is all.
        for provider in [name] if name in names else names:
            found[provider.lower()] = f"{provider}=={version(provider).partition('+')[0]}"
    return [found[name] for name in sorted(found)]


def foreign_imports(module: str) -> dict[str, str]:
    """Top-level names of what `module` and all it needs import from others, each with a module that does."""
    found: dict[str, str] = {}
    for importer in sorted(own_modules(module)):
        for name in _imports(_source(importer).read_bytes()):
            top = name.partition(".")[0]
            if top not in stdlib_module_names and top != PACKAGE.name:
                found.setdefault(top, importer)
    return found


def own_modules(module: str) -> set[str]:
    """Our modules that `module` imports, itself included, and those that they import."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        # `from ava_core.errors import AvaError` may name a module or what is in one.
        if name in found or not (source := _source(name)).is_file():
            continue
        found.add(name)
        waiting += [name.rpartition(".")[0]] if "." in name else []
        waiting += [other for other in _imports(source.read_bytes()) if other.partition(".")[0] == PACKAGE.name]
    return found


@cache
def _providers() -> Mapping[str, Sequence[str]]:
    """The installed packages that have a part of each top-level name; half a second's work."""
    return packages_distributions()


def _source(module: str) -> Path:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imports(source: bytes) -> tuple[str, ...]:
    """Everything that a source file imports; of `from a import b` both `a` and `a.b`, since b may be a module."""
    tree = ast.parse(source)
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    found: list[str] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.If) and _is_for_types(node.test) and "__getattr__" not in functions:
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return tuple(found)


def _is_for_types(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
