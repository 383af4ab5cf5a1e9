"""lm-eval's own tasks by name, found without building its index: parsing 14,000 files takes half a minute."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import yaml

from ava_core.config.tasks import BUILT_IN
from ava_core.errors import ConfigError, shorten

_NAMED = re.compile(rb"^(?:task|group|tag): *['\"]?([^\s'\"#]+)['\"]? *(?:#.*)?$", re.MULTILINE)
_TAGS = re.compile(rb"^tag: *\n((?: *- *[^\n]+\n?)+)", re.MULTILINE)
_TAG = re.compile(rb"- *['\"]?([^\s'\"#]+)")


class Catalogue:
    """Names of lm-eval's tasks, groups and tags, and the folders of their files."""

    def __init__(self) -> None:
        spec = find_spec("lm_eval.tasks")
        assert spec is not None
        assert spec.origin is not None
        self.root = Path(spec.origin).parent
        self._files: dict[str, list[Path]] = {}
        for path in sorted(self.root.glob("**/*.yaml")):
            for name in _names_in(path.read_bytes()):
                self._files.setdefault(name, []).append(path)

    def require(self, name: str, where: str) -> None:
        """Refuse a name that there isn't.

        Raises:
            ConfigError: with the nearest names that there are.
        """
        if name not in self._files:
            close = difflib.get_close_matches(name, [*BUILT_IN, *self._files], n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "`lm_eval ls tasks` lists lm-eval's"
            raise ConfigError(f"{where}: {shorten(name)}: there is no task of this name: {hint}")

    def folders(self, name: str) -> list[Path]:
        """The folders with the files of a task, and of the members of a group or tag."""
        folders: dict[Path, None] = {}
        waiting, seen = [name], set()
        while waiting:
            wanted = waiting.pop()
            if wanted in seen:
                continue
            seen.add(wanted)
            for path in self._files.get(wanted, ()):
                folders.setdefault(path.parent)
                waiting += _members(path)
        return _outermost(list(folders))


def _names_in(content: bytes) -> Iterator[str]:
    for match in _NAMED.finditer(content):
        yield match.group(1).decode(errors="replace")
    for block in _TAGS.finditer(content):
        for match in _TAG.finditer(block.group(1)):
            yield match.group(1).decode(errors="replace")


class _Plain(yaml.SafeLoader):
    """Reads lm-eval's own files without their functions."""


_Plain.add_constructor("!function", lambda loader, node: None)


def _members(path: Path) -> list[str]:
    """Names that a group lists, at any depth."""
    content = path.read_bytes()
    if not re.search(rb"^group:", content, re.MULTILINE):
        return []
    return list(_listed(yaml.load(content, Loader=_Plain).get("task")))  # noqa: S506  a SafeLoader


def _listed(given: object) -> Iterator[str]:
    if isinstance(given, str):
        yield given
    elif isinstance(given, list):
        for item in given:
            yield from _listed(item)
    elif isinstance(given, dict):
        yield from _listed(given.get("task"))
        yield from _listed(given.get("group"))


def _outermost(folders: list[Path]) -> list[Path]:
    """Without those inside another one: a folder is read with all below it."""
    return sorted(folder for folder in folders if not any(other in folder.parents for other in folders))
