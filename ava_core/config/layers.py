"""Layers of configuration, later wins: defaults < preset < params.yaml < --config < --set.

`null` in a file means "as the layers below say", so that params.yaml can list a key for `dvc exp run -S` without
fixing its value; `--set key=null` sets null.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ava_core.config import presets
from ava_core.config.schema import AvaConfig
from ava_core.config.yaml_text import MAX_BYTES, MAX_DEPTH, YamlError, cut_by_comment, read_yaml
from ava_core.errors import ConfigError, shorten

MAX_FAULTS = 20
"""Lines of one refusal: looking for what was meant takes time for each."""


@dataclass(frozen=True)
class Resolved:
    """A validated configuration.

    Attributes:
        config: the values.
        origins: for every dotted key of a leaf, the layer that set it: `default`, a file, `--set`.
        preset_reason: why `preset: auto` chose what it chose, else None.
    """

    config: AvaConfig
    origins: dict[str, str]
    preset_reason: str | None = None


@dataclass(frozen=True)
class _Layer:
    name: str
    values: dict[str, Any]


def resolve(
    *,
    params: Path | None = None,
    params_text: str | None = None,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
) -> Resolved:
    """Read, merge and validate all layers.

    Args:
        params: params.yaml, or None.
        params_text: the same as text, for a container that has no file.
        config_file: the file given with --config.
        overrides: `key.path=value`, value in YAML, from --set.

    Raises:
        ConfigError: one line per fault, naming file, key, value and what is allowed.
    """
    if params is not None and params_text is not None:
        raise ConfigError("--params and --params-yaml: give only one of them")
    above = []
    if params is not None:
        above.append(_file_layer(str(params), params))
    if params_text is not None:
        above.append(_text_layer("--params-yaml", params_text))
    if config_file is not None:
        above.append(_file_layer(str(config_file), config_file))
    if overrides:
        above.append(_override_layer(overrides))
    preset, origin = _named_preset(above)
    layers, reason = above, None
    if preset is not None:
        path, reason = presets.find(preset, origin)
        layers = [_file_layer(presets.label(path), path), *above]
    return _validate(layers, reason)


def _validate(layers: list[_Layer], reason: str | None) -> Resolved:
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    faults: list[str] = []
    for layer in layers:
        faults.extend(islice(_unknown_keys(layer), MAX_FAULTS + 1 - len(faults)))
        merged = _merge(merged, layer.values)
        origins.update(dict.fromkeys(_leaves(layer.values), layer.name))
    if faults:
        raise ConfigError(*_first(faults))
    try:
        config = AvaConfig.model_validate(merged)
    except ValidationError as error:
        found = islice(error.errors(include_url=False), MAX_FAULTS + 1)
        raise ConfigError(*_first(list(dict.fromkeys(_explain(item, origins) for item in found)))) from error
    leaves = _leaves(config.model_dump(mode="json", by_alias=True))
    return Resolved(config, {key: origins.get(key, "default") for key in leaves}, reason)


def _first(faults: list[str]) -> list[str]:
    return faults if len(faults) <= MAX_FAULTS else [*faults[:MAX_FAULTS], "and more faults: mend these first"]


def _file_layer(name: str, path: Path) -> _Layer:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:  # a name with a NUL in it
        raise ConfigError(f"{_show(str(path), quoted=True)}: can't be read: {error}") from error
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{path}: can't be read: has more than {MAX_BYTES:,} bytes")
    return _text_layer(name, text)


def _text_layer(name: str, text: str) -> _Layer:
    try:
        values = read_yaml(text)
    except YamlError as error:
        raise ConfigError(f"{name}: {error}") from error
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(f"{name}: holds no mapping of keys to values")
    return _checked(_Layer(name, _without_nulls(values or {})))


def _override_layer(overrides: Sequence[str]) -> _Layer:
    values: dict[str, Any] = {}
    for item in overrides:
        if not re.match(r"[A-Za-z_]\w*(\.\w+)*=", item):
            raise ConfigError(f"--set {shorten(item)}: must be key.path=value")
        dotted, _, text = item.partition("=")
        try:
            value = read_yaml(text)
            cut = cut_by_comment(text)
        except YamlError as error:
            raise ConfigError(
                f"--set {shorten(dotted)} = {_show(text, quoted=False)}: can't be read: {error}"
            ) from error
        if cut:
            raise ConfigError(f"--set {shorten(item)}: ` #` begins a comment in YAML: put the value into quotes")
        *sections, key = dotted.split(".")
        if len(sections) > MAX_DEPTH:
            raise ConfigError(f"--set {shorten(item)}: nested more than {MAX_DEPTH} deep")
        nested: Any = {key: _with_text_keys(value)}
        for section in reversed(sections):
            nested = {section: nested}
        values = _merge(values, nested)
    return _checked(_Layer("--set", values))


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key; anything else that is above replaces what is below."""
    merged = dict(below)
    for key, value in above.items():
        mine = merged.get(key)
        merged[key] = _merge(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return merged


def _checked(layer: _Layer) -> _Layer:
    """Refuse `${...}`: a value that depends on another key or on the environment can't be seen in the file."""
    for key, value in _leaves(layer.values).items():
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{layer.name}: {key} = {shorten(value)}: references are not supported: write the value")
    return layer


def _without_nulls(values: Mapping[Any, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            kept[str(key)] = _without_nulls(value)
        elif value is not None:
            kept[str(key)] = value
    return kept


def _with_text_keys(value: Any) -> Any:
    return {str(key): _with_text_keys(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(_leaves(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _named_preset(layers: Sequence[_Layer]) -> tuple[str | None, str]:
    for layer in reversed(layers):
        if (name := layer.values.get("preset")) is not None:
            return str(name), layer.name
    return None, ""


def _unknown_keys(layer: _Layer) -> Iterator[str]:
    known = dict(_known_keys(AvaConfig))
    free = set(_free_mappings(AvaConfig))

    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for key, value in values.items():
            dotted = f"{prefix}{key}"
            if dotted not in known:
                close = difflib.get_close_matches(dotted, known, n=1, cutoff=0.6) or [
                    full for full in known if full.rsplit(".", 1)[-1] == key
                ]
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_siblings(known, prefix))}"
                yield f"{layer.name}: {shorten(dotted)}: unknown key: {hint}"
            elif isinstance(value, Mapping):
                if dotted not in free:
                    yield from walk(value, f"{dotted}.")
            elif known[dotted]:
                keys = ", ".join(key.rsplit(".", 1)[-1] for key in _siblings(known, f"{dotted}."))
                yield f"{layer.name}: {dotted} = {_show(value, quoted=True)}: must be a section with keys {keys}"

    yield from walk(layer.values, "")


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Dotted keys that may be written, and whether each is a section."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        yield key, nested
        if nested:
            yield from _known_keys(field.annotation, f"{key}.")  # type: ignore[arg-type]


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


def _explain(error: ErrorDetails, origins: Mapping[str, str]) -> str:
    """One line: file, key, value, what is allowed."""
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return _explain_relation(key, str(context["error"]), origins)
    origin = next(_origins(key, origins), "default")
    if error["type"] == "extra_forbidden":
        fields = _section_at(error["loc"]).model_fields
        close = difflib.get_close_matches(str(error["loc"][-1]), fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(fields)}"
        return f"{origin}: {key}: unknown key: {hint}"
    if error["type"] == "missing":
        return f"{origin}: {key}: is missing"
    allowed = _PHRASES.get(error["type"])
    detail = allowed.format(**context).replace("'", "") if allowed else error["msg"]
    return f"{origin}: {key} = {_show(error['input'], quoted=error['type'].endswith('_type'))}: {detail}"


def _section_at(path: Sequence[str | int]) -> type[BaseModel]:
    """The section that a key stands in, through the lists and mappings on the way."""
    section: type[BaseModel] = AvaConfig
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


def _show(value: Any, quoted: bool) -> str:
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
