"""Layers of configuration, later wins: defaults < preset < hardware < params.yaml < --config < --set.

With `train.init` the parent's architecture is a layer above the preset, whose own section `model` is left out.

`null` in a file means "as the layers below say", so that params.yaml can list a key for `dvc exp run -S` without
fixing its value; `--set key=null` sets null.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ava_core.config import presets
from ava_core.config.faults import explain, show_value, unknown_keys
from ava_core.config.inheritance import contradictions, find_architecture
from ava_core.config.schema import FINE_TUNINGS, AvaConfig
from ava_core.config.yaml_text import MAX_BYTES, MAX_DEPTH, YamlError, cut_by_comment, read_yaml
from ava_core.errors import ConfigError, shorten

MAX_FAULTS = 20
"""Faults listed in one refusal; finding the nearest known key takes time for each."""


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
    config_files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    inherit: Callable[[str], Mapping[str, Any] | None] = find_architecture,
    above_all: tuple[str, Mapping[str, Any]] | None = None,
) -> Resolved:
    """Read, merge and validate all layers.

    Args:
        params: params.yaml, or None.
        params_text: the same as text, for a container that has no file.
        config_files: those given with --config, later ones win; or names of some under configs/, such as hardware/a100.
        overrides: `key.path=value`, value in YAML, from --set.
        inherit: gives the section `model` of what `train.init` names; None where that isn't known here.
        above_all: one more layer, over all others: what messages call it, and its values by dotted key.

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
    above += [_file_layer(str(file), presets.shipped(file)) for file in config_files]
    if overrides:
        above.append(_override_layer(overrides))
    if above_all is not None:
        above.append(_checked(_Layer(above_all[0], nested(above_all[1]))))
    below: list[_Layer] = []
    reason = None
    preset, origin = _named("preset", above)
    if preset is not None:
        path, reason = presets.find(preset, origin)
        below.append(_file_layer(presets.label(path), path))
    machine, origin = _named("hardware", above)
    if machine is not None:
        path = presets.find_hardware(machine, origin)
        below.append(_file_layer(presets.label(path), path))
    if (init := _named_parent([*below, *above])) is not None:
        below = [_Layer(layer.name, {k: v for k, v in layer.values.items() if k != "model"}) for layer in below]
        if (parent := inherit(init)) is not None:
            faults = [line for layer in above for line in contradictions(init, parent, *_model_of(layer))]
            if faults:
                raise ConfigError(*_first(faults))
            below.append(_Layer(f"train.init {shorten(init)}", {"model": dict(parent)}))
    return _validate([*below, *above], reason)


def overlay(config_files: Sequence[Path], overrides: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """What a file would have to say that stands for --config, --set and `values` (by dotted key) over both.

    A null, which in a file means "as the layers below say", stays as it is.
    """
    merged: dict[str, Any] = {}
    for file in config_files:
        merged = _merge(merged, _file_layer(str(file), presets.shipped(file)).values)
    return _merge(_merge(merged, _override_layer(overrides).values), nested(values))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key as sections in sections."""
    merged: dict[str, Any] = {}
    for dotted, value in values.items():
        inner: Any = value
        for part in reversed(dotted.split(".")):
            inner = {part: inner}
        merged = _merge(merged, inner)
    return merged


def _validate(layers: list[_Layer], reason: str | None) -> Resolved:
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    faults: list[str] = []
    for layer in layers:
        faults.extend(islice(unknown_keys(layer.name, layer.values), MAX_FAULTS + 1 - len(faults)))
        merged = _merge(merged, layer.values)
        origins.update(dict.fromkeys(_leaves(layer.values), layer.name))
    if faults:
        raise ConfigError(*_first(faults))
    train = merged.get("train")
    for section, kind in FINE_TUNINGS.items():
        taken = kind.inherited(train)
        inherited = {f"{section}.{key}": origins.get(f"train.{key}") for key in _leaves(taken)}
        origins = {key: origin for key, origin in inherited.items() if origin} | origins
        if isinstance(own := merged.get(section, {}), Mapping):
            merged[section] = _merge(taken, own)
    try:
        config = AvaConfig.model_validate(merged)
    except ValidationError as error:
        found = islice(_without_repeated(error.errors(include_url=False)), MAX_FAULTS + 1)
        raise ConfigError(*_first(list(dict.fromkeys(explain(item, origins) for item in found)))) from error
    leaves = _leaves(config.model_dump(mode="json", by_alias=True))
    return Resolved(config, {key: origins.get(key, "default") for key in leaves}, reason)


def _without_repeated(errors: Sequence[Any]) -> Iterator[Any]:
    """Without what other sections have taken over from a faulty `train`."""
    known = {(*item["loc"][1:], item["msg"]) for item in errors if item["loc"][:1] == ("train",)}
    repeated = {(section,) for section in FINE_TUNINGS}
    for item in errors:
        if item["loc"][:1] not in repeated or (*item["loc"][1:], item["msg"]) not in known:
            yield item


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
        raise ConfigError(f"{show_value(str(path), quoted=True)}: can't be read: {error}") from error
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
                f"--set {shorten(dotted)} = {show_value(text, quoted=False)}: can't be read: {error}"
            ) from error
        if cut:
            raise ConfigError(f"--set {shorten(item)}: ` #` begins a comment in YAML: put the value into quotes")
        if dotted.count(".") > MAX_DEPTH:
            raise ConfigError(f"--set {shorten(item)}: nested more than {MAX_DEPTH} deep")
        values = _merge(values, nested({dotted: _with_text_keys(value)}))
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


def _named_parent(layers: Sequence[_Layer]) -> str | None:
    """The value of `train.init`; what is no text is left for the validation to refuse."""
    for layer in reversed(layers):
        train = layer.values.get("train")
        if isinstance(train, Mapping) and "init" in train:
            return train["init"] if isinstance(train["init"], str) and train["init"] else None
    return None


def _model_of(layer: _Layer) -> tuple[str, Any]:
    return layer.name, layer.values.get("model")


def _named(key: str, layers: Sequence[_Layer]) -> tuple[str | None, str]:
    """What the highest layer with a top-level key says, and that layer."""
    for layer in reversed(layers):
        if (name := layer.values.get(key)) is not None:
            return str(name), layer.name
    return None, ""
