"""What is wrong with a configuration, one line per fault: the layer, the key, its value, and what is allowed."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ava_core.config.schema import AvaConfig
from ava_core.errors import shorten


def unknown_keys(layer: str, values: Mapping[str, Any]) -> Iterator[str]:
    """A line for each key that no section has, with the nearest one that there is.

    Args:
        layer: where the values come from.
        values: nested by section.
    """
    known = dict(known_keys(AvaConfig))
    free = set(_free_mappings(AvaConfig))

    def walk(section: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for key, value in section.items():
            dotted = f"{prefix}{key}"
            if dotted not in known:
                close = difflib.get_close_matches(dotted, known, n=1, cutoff=0.6) or [
                    full for full in known if full.rsplit(".", 1)[-1] == key
                ]
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_siblings(known, prefix))}"
                yield f"{layer}: {shorten(dotted)}: unknown key: {hint}"
            elif isinstance(value, Mapping):
                if dotted not in free:
                    yield from walk(value, f"{dotted}.")
            elif known[dotted]:
                keys = ", ".join(key.rsplit(".", 1)[-1] for key in _siblings(known, f"{dotted}."))
                yield f"{layer}: {dotted} = {show_value(value, quoted=True)}: must be a section with keys {keys}"

    yield from walk(values, "")


def known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Dotted keys that may be written, and whether each is a section."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        yield key, nested
        if nested:
            yield from known_keys(field.annotation, f"{key}.")  # type: ignore[arg-type]


def _free_mappings(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys whose own keys are the user's, such as labels."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        if get_origin(field.annotation) is dict:
            yield key
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _free_mappings(field.annotation, f"{key}.")


def _siblings(known: Mapping[str, bool], prefix: str) -> list[str]:
    return [key for key in known if key.startswith(prefix) and "." not in key[len(prefix) :]]


_PHRASES = {
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
    "literal_error": "must be one of {expected}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be finite",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of names to values",
    "too_short": "must have at least {min_length} entry",
    "string_too_short": "must not be empty",
    "model_type": "must be a section with keys of its own",
    "string_pattern_mismatch": "must match {pattern}",
}


def explain(error: ErrorDetails, origins: Mapping[str, str], root: type[BaseModel] = AvaConfig) -> str:
    """What pydantic found, in one line: layer, key, value, what is allowed.

    Args:
        error: the fault.
        origins: the layer of each dotted key.
        root: what was validated.
    """
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return _explain_relation(key, str(context["error"]), origins)
    origin = next(_origins(key, origins), "default")
    if error["type"] == "extra_forbidden":
        fields = _section_at(error["loc"], root).model_fields
        close = difflib.get_close_matches(str(error["loc"][-1]), fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(fields)}"
        return f"{origin}: {key}: unknown key: {hint}"
    if error["type"] == "missing":
        return f"{origin}: {key}: is missing"
    allowed = _PHRASES.get(error["type"])
    detail = allowed.format(**context).replace("'", "") if allowed else error["msg"]
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        close = difflib.get_close_matches(error["input"], re.findall(r"'([^']*)'", context["expected"]), n=1)
        detail += f": did you mean {close[0]}?" if close else ""
    return f"{origin}: {key} = {show_value(error['input'], quoted=error['type'].endswith('_type'))}: {detail}"


def _section_at(path: Sequence[str | int], root: type[BaseModel]) -> type[BaseModel]:
    """The section that a key stands in, through the lists and mappings on the way."""
    section = root
    for part in path[:-1]:
        fields = {field.alias or name: field for name, field in section.model_fields.items()}
        if isinstance(part, str) and part in fields:
            inside = fields[part].annotation
            inner = [inside, *get_args(inside)]
            section = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), section)
    return section


def _explain_relation(section: str, detail: str, origins: Mapping[str, str]) -> str:
    """A fault between fields; `detail` begins with `field = value` of the section, where it blames one field."""
    prefix = f"{section}." if section else ""
    named = [f"{prefix}{word}" for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", detail)]
    layers = dict.fromkeys(origins[name] for name in (*named, *_parents(section), section) if name in origins)
    layer = ", ".join(layers) or (next(_origins(section, origins), "default") if section else "default")
    separator = ("." if re.match(r"([a-z0-9_.]+ =|[a-z0-9_]+\.[a-z0-9_.]+:) ", detail) else ": ") if section else ""
    return f"{layer}: {section}{separator}{detail}"


def show_value(value: Any, quoted: bool) -> str:
    """A value as YAML would have it; text in quotes only where its being text is the fault, or can't be printed."""
    if isinstance(value, str) and not quoted and value.isprintable():
        return shorten(value)
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def _origins(key: str, origins: Mapping[str, str]) -> Iterator[str]:
    """The layers that set a key, what it lies in, or what lies in it."""
    yield from (origins[name] for name in (key, *_parents(key)) if name in origins)
    yield from (layer for name, layer in origins.items() if name.startswith(f"{key}."))


def _parents(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rsplit(".", 1)[0]
        yield key
