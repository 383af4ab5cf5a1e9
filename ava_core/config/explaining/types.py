"""The type of a field in words, and what it allows, from its annotation and pydantic's constraints."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ava_core.config.section import Section

_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "anything"}
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_ANY_TEXT = r"^[^\x00]+$"


@dataclass(frozen=True)
class Shape:
    """What a field takes.

    Attributes:
        kind: its type in words, such as `integer` or `list of text`.
        allowed: what a value must be beside, each a phrase: `> 0`, `one of a, b`.
        nullable: whether null is a value.
        section: the section that it is, or that its entries are.
        repeated: `[]` for a list of sections, `NAME` for sections by name, else empty.
    """

    kind: str
    allowed: tuple[str, ...] = ()
    nullable: bool = False
    section: type[Section] | None = None
    repeated: str = ""

    @property
    def words(self) -> str:
        """Type and what is allowed, in one phrase."""
        return ", ".join((self.type_words, *self.allowed))

    @property
    def type_words(self) -> str:
        """The type alone."""
        return f"{self.kind} or null" if self.nullable else self.kind


def shape_of(annotation: Any, metadata: Iterable[Any] = ()) -> Shape:
    """The shape of an annotation.

    Args:
        annotation: as pydantic keeps it, or as it is written.
        metadata: constraints that pydantic has taken out of it.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return shape_of(arguments[0], [*_flat(arguments[1:]), *metadata])
    if origin in (Union, types.UnionType):
        return _union(arguments, metadata)
    if origin is Literal:
        kinds = " or ".join(dict.fromkeys(_NAMES[type(value)] for value in arguments))
        return Shape(kinds, (f"one of {', '.join(map(str, arguments))}", *_phrases(metadata, "characters")))
    if origin is list:
        return _several("list of", shape_of(arguments[0]), metadata, "[]")
    if origin is dict:
        return _several("mapping of names to", shape_of(arguments[1]), metadata, "NAME")
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return Shape("section", section=annotation)
    return Shape(_NAMES.get(annotation, str(annotation)), tuple(_phrases(metadata, "characters")))


def _union(arguments: tuple[Any, ...], metadata: Iterable[Any]) -> Shape:
    parts = [shape_of(argument, metadata) for argument in arguments if argument is not type(None)]
    nullable = len(parts) < len(arguments)
    allowed = tuple(dict.fromkeys(phrase for part in parts for phrase in part.allowed))
    first = parts[0]
    return Shape(" or ".join(part.kind for part in parts), allowed, nullable, first.section, first.repeated)


def _several(words: str, inner: Shape, metadata: Iterable[Any], repeated: str) -> Shape:
    entries = "sections" if inner.section else inner.kind
    each = tuple(f"each {phrase}" for phrase in inner.allowed)
    own = tuple(_phrases(metadata, "entries"))
    return Shape(f"{words} {entries}", (*own, *each), section=inner.section, repeated=repeated if inner.section else "")


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def _phrases(metadata: Iterable[Any], counted: str) -> Iterator[str]:
    """Constraints as phrases; validators that are functions say nothing here, the meaning does."""
    for item in _flat(metadata):
        for name, sign in _SIGNS.items():
            if (bound := getattr(item, name, None)) is not None:
                yield f"{sign} {bound_text(bound)}"
        if (least := getattr(item, "min_length", None)) is not None:
            yield "not empty" if least == 1 else f"at least {least} {counted}"
        if (most := getattr(item, "max_length", None)) is not None:
            yield f"at most {most:,} {counted}"
        if (pattern := getattr(item, "pattern", None)) and pattern != _ANY_TEXT:
            yield f"matches `{pattern}`"


def bound_text(value: float) -> str:
    """A bound as people write it: 2^31 - 1 instead of ten digits."""
    if isinstance(value, int) and value > 4096:
        for power in range(12, 64):
            if value in (2**power, 2**power - 1):
                return f"2^{power}" + (" - 1" if value < 2**power else "")
        return f"{value:,}" if value < 10**9 else f"{value:g}"
    return f"{value:g}"
