"""The meaning of a field: the docstring right under it, which only the source has; so it is read from there."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from ava_core.config.section import Section
from ava_core.errors import AvaError

_Docs = dict[str, dict[str, str]]


def meaning_of(section: type[Section], field: str) -> str:
    """What a field means, in one line; empty where nothing says it.

    It is the docstring under the field in the class itself, else in the nearest one that it inherits from: a class that
    only changes a default needn't repeat it. A section without one means what its class says.

    Raises:
        AvaError: the source isn't there.
    """
    for kind in section.__mro__:
        if issubclass(kind, Section) and (found := _documented(kind).get(field)):
            return found
    info = section.model_fields[field]
    if info.description:  # of a class that is made while the program runs
        return _joined(info.description)
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
        return summary_of(info.annotation)
    return ""


def summary_of(section: type[Section]) -> str:
    """What the docstring of a section says, in one line; empty without one of its own."""
    return _joined(vars(section).get("__doc__") or "")


def first_sentence(meaning: str) -> str:
    """A meaning up to its first full stop or semicolon that ends a part."""
    ends = [index for mark in (". ", "; ") if (index := meaning.find(mark)) >= 0]
    return meaning[: min(ends)].rstrip(".") if ends else meaning.rstrip(".")


def _documented(kind: type) -> Mapping[str, str]:
    module = sys.modules.get(kind.__module__)  # inspect.getmodule looks at every file that was imported
    return {} if module is None else _docs_of(module).get(kind.__qualname__, {})


@functools.cache
def _docs_of(module: ModuleType) -> _Docs:
    """Of each class of a module, by qualified name: its fields' docstrings."""
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError) as error:
        name = Path(module.__file__ or module.__name__).name
        raise AvaError(
            f"{name}: has no source here, where the settings' meanings stand: see docs/settings.md"
        ) from error
    return dict(_classes(ast.parse(source), ""))


def _classes(body: ast.AST, prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
    for node in ast.iter_child_nodes(body):
        if isinstance(node, ast.ClassDef):
            yield f"{prefix}{node.name}", dict(_fields(node))
            yield from _classes(node, f"{prefix}{node.name}.")


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            yield field.target.id, _joined(below.value.value)


def _joined(text: str) -> str:
    return " ".join(text.split())
