"""`ava config explain`: what a setting means, may be, is by default and does."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ava_core.config.explaining.settings import Setting

WIDTH = 110
"""Columns at most; a terminal may have fewer."""


def explain(
    key: Annotated[
        str, typer.Argument(help="Dotted key, such as train.learning_rate, or a section; none: list the sections.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Explain a setting: type, bounds, unit, default, meaning, which presets set it, what reruns when it changes.

    Of a section, and of a list of sections, the keys in it.
    """
    from ava_core.config.explaining.settings import below, find

    setting = find(key) if key else None
    inside = below(setting.key) if setting and setting.shape.section else [] if setting else below("")
    if as_json:
        listed = [item.as_json() for item in inside]
        answer: Any = listed if setting is None else setting.as_json() | ({"keys": listed} if listed else {})
        print(json.dumps(answer, ensure_ascii=False, indent=2))
        return
    lines = [] if setting is None else list(describe(setting))
    if setting is not None and setting.is_section:
        lines = lines[:1]
    for line in [*lines, *_listed(inside, under=bool(lines))]:
        print(line)


def describe(setting: Setting) -> Iterator[str]:
    """All that there is to say of a setting, each line of it."""
    yield _wrapped(f"{setting.key}: {setting.meaning}", "  ")
    for name, text in facts(setting):
        yield _wrapped(f"  {name:<9}{text}", " " * 11)


def facts(setting: Setting) -> Iterator[tuple[str, str]]:
    """What is known of a setting beside its meaning, with its name."""
    from ava_core.config.explaining.settings import BY_MACHINE, value_words

    by_machine = setting.default_words == BY_MACHINE and "[]" not in setting.key
    yield "type", setting.shape.type_words
    if setting.shape.allowed:
        yield "allowed", ", ".join(setting.shape.allowed)
    if setting.unit:
        yield "unit", setting.unit
    yield "default", setting.default_words + (f": here {_default_here(setting)}" if by_machine else "")
    if setting.presets:
        yield "presets", ", ".join(f"{name} {value_words(value)}" for name, value in setting.presets.items())
    yield "reruns", setting.reruns


def _default_here(setting: Setting) -> str:
    """What the default is on this machine."""
    from ava_core.config import AvaConfig

    value: Any = AvaConfig().model_dump(mode="json", by_alias=True)
    for part in setting.key.split("."):
        value = value[part]
    return str(value)


def comment(key: str) -> Iterator[str]:
    """What `ava config show --explain` puts under a value, as comments without their mark."""
    from ava_core.config.explaining.settings import find
    from ava_core.errors import ConfigError

    try:
        setting = find(key)
    except ConfigError:  # a name that the user gave, as of a tag
        return
    yield setting.meaning
    if not setting.is_section:
        yield "; ".join(f"{name} {text}" for name, text in facts(setting))


def wrap_comment(text: str, indent: str) -> str:
    """A comment under a value, over as many lines as it needs."""
    begin = f"{indent}# "
    return textwrap.fill(text, WIDTH, initial_indent=begin, subsequent_indent=begin, break_long_words=False)


def _listed(settings: list[Setting], under: bool) -> Iterator[str]:
    from ava_core.config.explaining.meanings import first_sentence

    width = max((len(setting.key) for setting in settings), default=0)
    default_width = min(24, max((len(_default(setting)) for setting in settings), default=0))
    for setting in settings:
        start = f"{'  ' if under else ''}{setting.key:<{width}}  {_default(setting):<{default_width}}"
        yield f"{start}  {first_sentence(setting.meaning)}".rstrip()


def _default(setting: Setting) -> str:
    if setting.is_section:
        return "section"
    return setting.default_words if len(setting.default_words) <= 24 else "..."


def _wrapped(text: str, further: str) -> str:
    columns = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    return textwrap.fill(text, columns, subsequent_indent=further, break_long_words=False, break_on_hyphens=False)
