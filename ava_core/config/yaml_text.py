"""YAML of the configuration: read within limits that are known before anything is built, and written back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from ava_core.errors import first_line, shorten

MAX_BYTES = 256 * 1024
"""Of a text in UTF-8."""
MAX_DEPTH = 32
"""Sections and lists inside each other; aliases count as what they stand for."""
MAX_VALUES = 20_000
"""Keys, values and entries of lists; an alias counts as all that it stands for."""
MAX_NUMBER = 64
"""Characters of a number."""

# PyYAML writes these as they are and reads them as line breaks.
_SEPARATORS = ("\x85", "\u2028", "\u2029")
_TAG = "tag:yaml.org,2002:"
_KINDS = {f"{_TAG}map": yaml.MappingNode, f"{_TAG}seq": yaml.SequenceNode} | dict.fromkeys(
    (f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "merge")), yaml.ScalarNode
)
_MERGE, _NUMBERS = f"{_TAG}merge", (f"{_TAG}int", f"{_TAG}float")


class YamlError(ValueError):
    """Text that is no YAML, or YAML past a limit. The message is one line."""


def read_yaml(text: str) -> Any:
    """The mappings, lists, strings, numbers, booleans and nulls that a YAML text stands for.

    As YAML 1.2 has it, `1e-3` is a number, and dates are text. Work and memory are bounded: events are counted before a
    tree is built, and the tree, in which aliases share branches, is measured before values are made of it.

    Raises:
        YamlError: no YAML, more than one document, a key twice, tags of other types, or past a limit.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise YamlError(f"isn't valid Unicode at character {error.start + 1}") from error
    if size > MAX_BYTES:
        raise YamlError(f"has {size:,} bytes: must have at most {MAX_BYTES:,}")
    try:
        _require_shallow(text)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _Measured(loader).measure(root, ())
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        detail = getattr(error, "problem", None) or first_line(error)
        if detail.startswith("but ") and getattr(error, "context", None):
            detail = f"{error.context}, {detail}"  # type: ignore[attr-defined]
        raise YamlError(f"{line}not valid YAML: {detail}") from error


def _require_shallow(text: str) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > 2 * MAX_VALUES:  # a collection has an event more than it has values
            limit = f"nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else f"more than {MAX_VALUES:,} values"
            raise YamlError(f"line {event.start_mark.line + 1}: {limit}")  # type: ignore[union-attr]


class _Measured:
    """Values and depth of a tree of nodes; each node is visited once, however many aliases stand for it."""

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader
        self._known: dict[int, tuple[int, int] | None] = {}

    def measure(self, node: yaml.Node, keys: tuple[str, ...]) -> tuple[int, int]:
        """How many values a node stands for, and how deep they are nested.

        Raises:
            YamlError: past a limit, or of a type that the configuration doesn't have; names the key.
        """
        if id(node) in self._known:
            size = self._known[id(node)]
            if size is None:
                raise _fault(node, keys, "an alias of what it stands in")
        else:
            self._known[id(node)] = None
            size = self._known[id(node)] = self._measure(node, keys)
        if len(keys) + size[1] > MAX_DEPTH:
            raise _fault(node, keys, f"nested more than {MAX_DEPTH} deep")
        return size

    def _measure(self, node: yaml.Node, keys: tuple[str, ...]) -> tuple[int, int]:
        if node.tag not in _KINDS:
            raise _fault(node, keys, f"{node.tag.rpartition(':')[2]} is no type of the configuration")
        if not isinstance(node, _KINDS[node.tag]):
            raise _fault(node, keys, f"is no {node.tag.rpartition(':')[2]}")
        if isinstance(node, yaml.ScalarNode):
            self._require_scalar(node, keys)
            return 1, 0
        if len(keys) >= MAX_DEPTH:
            raise _fault(node, keys, f"nested more than {MAX_DEPTH} deep")
        count, depth = 1, 0
        for key, child in self._children(node, keys):
            more, deeper = self.measure(child, (*keys, key))
            count, depth = count + more, max(depth, 1 + deeper)
            if count > MAX_VALUES:
                raise _fault(node, keys, f"stands for more than {MAX_VALUES:,} values")
        return count, depth

    def _require_scalar(self, node: yaml.ScalarNode, keys: tuple[str, ...]) -> None:
        if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER:
            raise _fault(node, keys, f"a number of {len(node.value):,} characters: must have at most {MAX_NUMBER}")
        if any("\ud800" <= letter <= "\udfff" for letter in node.value):
            raise _fault(node, keys, "isn't valid Unicode: holds half of a surrogate pair")
        try:
            self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, KeyError) as error:  # `!!int x`, `0b_`, `<<` as a value
            kind = node.tag.rpartition(":")[2]
            raise _fault(node, keys, f"{shorten(node.value)} is no {kind}: quote it if it is text") from error

    def _children(self, node: yaml.Node, keys: tuple[str, ...]) -> list[tuple[str, yaml.Node]]:
        if isinstance(node, yaml.SequenceNode):
            return [(str(index), child) for index, child in enumerate(node.value)]
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault(key, keys, "a key must be text")
            if key.value in seen:
                raise _fault(key, keys, f"found duplicate key {shorten(key.value)}")
            seen.add(key.value)
            if key.tag != _MERGE:
                self.measure(key, keys)
        return [(key.value, child) for key, child in node.value]


def _fault(node: yaml.Node, keys: tuple[str, ...], text: str) -> YamlError:
    line = f"line {node.start_mark.line + 1}: "
    return YamlError(f"{line}{shorten('.'.join(keys))}: {text}" if keys else f"{line}{text}")


# libyaml's is ten times as fast; PyYAML is built without it on some platforms.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.1 as PyYAML reads it, but for dates, which stay text, and numbers such as 1e-3, which are numbers."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":value", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def is_whole(text: str) -> bool:
    """Whether the text is YAML in which no quote and no bracket is left open."""
    try:
        read_yaml(text)
    except YamlError:
        return False
    return True


def cut_by_comment(text: str) -> bool:
    """Whether a ` #` in the text of one value begins a comment, so that what follows would be lost."""
    tokens = [token for token in yaml.scan(text, Loader=_Loader) if not isinstance(token, yaml.StreamEndToken)]
    return "#" in text[tokens[-1].end_mark.index :] if tokens else False


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of `values`, keys in their order, letters of all scripts readable."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    if any(separator in text for separator in _SEPARATORS):
        return yaml.safe_dump(dict(values), sort_keys=False)
    return text
