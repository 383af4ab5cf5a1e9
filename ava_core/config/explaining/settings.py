"""All settings, and what there is to say of each."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import PydanticUndefined, to_jsonable_python

from ava_core.config.explaining.meanings import meaning_of
from ava_core.config.explaining.reruns import rerun_words
from ava_core.config.explaining.shipped import presets_setting
from ava_core.config.explaining.types import Shape, shape_of
from ava_core.config.explaining.units import unit_of
from ava_core.config.finetuning import LEFT_OUT, OWN, RATES
from ava_core.config.schema import FINE_TUNINGS, AvaConfig
from ava_core.config.section import Section
from ava_core.config.train import TrainConfig
from ava_core.errors import ConfigError, shorten
from ava_core.steps.table import STEPS

PODS = "kubernetes.steps."
EVERY = "every"
BY_MACHINE = "as the machine is"
_MARKS = re.compile(r"\[\d*\]")


@dataclass(frozen=True)
class Setting:
    """Attributes:
    key: dotted; a list of sections has `[]` behind its name, and sections by name have NAME for it.
    meaning: what it is, in one line.
    shape: type and what is allowed.
    unit: of a number; empty where nothing says one.
    default: as JSON has it; None too where `needed` or where the machine decides.
    default_words: the default as people read it.
    presets: value by file under configs/, of those that set it.
    reruns: what runs again when it changes.
    """

    key: str
    meaning: str
    shape: Shape
    unit: str
    default: Any
    default_words: str
    presets: dict[str, Any]
    reruns: str

    @property
    def is_section(self) -> bool:
        """Whether it is a section itself, and so no value."""
        return self.shape.section is not None and not self.shape.repeated

    def as_json(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "key": self.key,
            "type": self.shape.type_words,
            "allowed": list(self.shape.allowed),
            "unit": self.unit or None,
            "default": self.default,
            "default_words": self.default_words,
            "meaning": self.meaning,
            "presets": self.presets,
            "reruns": self.reruns,
        }


@functools.cache
def all_settings() -> dict[str, Setting]:
    """Every setting and section by key, in the order of the configuration.

    The pods of single steps are left out: they have the keys of `kubernetes.steps.every`. So are fields of `train` that
    a section of fine-tuning refuses.
    """
    return {setting.key: setting for setting in _walk(AvaConfig, "")}


def find(key: str) -> Setting:
    """The setting of a key as people write it: `data.sources.path`, `data.sources[0].path`, `register.gate.my.figure`.

    Raises:
        ConfigError: there is none, with the nearest that there is; or it may not be set, with the reason.
    """
    written = _plain(key.strip())
    if setting := _known().get(written):
        return setting
    for known, setting in _known().items():
        if "NAME" in known and re.fullmatch(_pattern(known), written):
            return setting
    if (every := _of_every_pod(written)) and (setting := _known().get(every)):
        meaning = setting.meaning if every != f"{PODS}{EVERY}" else f"{setting.meaning} Here over `every`, of one step."
        return replace(setting, key=written, meaning=meaning, presets=presets_setting(written))
    if setting := _mapping_of(written):
        return setting
    top, _, field = written.partition(".")
    if kind := FINE_TUNINGS.get(top):
        reason = {**OWN, **kind.refused}.get(field.partition(".")[0])
        if reason:
            raise ConfigError(f"{shorten(key)}: may not be set: {reason}")
    raise ConfigError(f"{shorten(key)}: unknown key: {_hint(written)}")


def below(key: str) -> list[Setting]:
    """What is right under a section, or under a list of them; under the empty key, the sections and top-level keys."""
    key = _of_every_pod(key) or _plain(key)
    parents = {key, f"{key}.NAME"}
    return [setting for setting in all_settings().values() if _plain(setting.key.rpartition(".")[0]) in parents]


@functools.cache
def _known() -> dict[str, Setting]:
    """All settings by their keys without marks."""
    return {_plain(key): setting for key, setting in all_settings().items()}


def _mapping_of(key: str) -> Setting | None:
    """The mapping that a name of the user's stands in: `run.tags` of `run.tags.team`, `register.gate` of a bound."""
    for known, setting in _known().items():
        if setting.shape.kind.startswith("mapping") and key.startswith(f"{known}."):
            rest = key.removeprefix(f"{known}.")
            if not setting.shape.section or "." not in rest:  # what is in a section has keys that are known
                return setting
    return None


def _of_every_pod(key: str) -> str:
    """The key of `kubernetes.steps.every` that has the meaning of a step's; empty if it is none."""
    step, _, rest = key.removeprefix(PODS).partition(".")
    return f"{PODS}{EVERY}.{rest}".rstrip(".") if key.startswith(PODS) and step in STEPS else ""


def _walk(section: type[Section], prefix: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        if _is_left_out(key):
            continue
        shape = shape_of(field.annotation, field.metadata)
        meaning = meaning_of(section, name)
        default, words = _default(section, name, key)
        unit = unit_of(name, meaning) if shape.kind in ("integer", "number") else ""
        presets = {} if shape.section and not shape.repeated else presets_setting(_plain(key))
        yield Setting(key, meaning, shape, unit, default, words, presets, rerun_words(_plain(key)))
        if shape.section:
            inside = {"": f"{key}.", "[]": f"{key}[].", "NAME": f"{key}.NAME."}[shape.repeated]
            yield from _walk(shape.section, inside)


def _is_left_out(key: str) -> bool:
    if key.startswith(PODS):
        return key.removeprefix(PODS).partition(".")[0] != EVERY
    top, _, rest = key.partition(".")
    kind = FINE_TUNINGS.get(top)
    return kind is not None and rest in {*OWN, *kind.refused}


def inherits(key: str) -> bool:
    """Whether a key of a section of fine-tuning is as in `train` where it isn't set."""
    top, _, rest = key.partition(".")
    field = rest.partition(".")[0].removesuffix("[]")
    kind = FINE_TUNINGS.get(top)
    return bool(kind and field in TrainConfig.model_fields and field not in {*LEFT_OUT, *kind.refused})


def _default(section: type[Section], name: str, key: str) -> tuple[Any, str]:
    field = section.model_fields[name]
    if field.is_required():
        return None, "none: must be given"
    if inherits(key):
        top, _, rest = key.partition(".")
        if rest in RATES:
            return _json(section, name), f"{FINE_TUNINGS[top].rate_share:g} x train.{rest}"
        return _json(section, name), f"as train.{rest}"
    if field.default is PydanticUndefined:
        return None, BY_MACHINE
    value = _json(section, name)
    return value, value_words(value)


def _json(section: type[Section], name: str) -> Any:
    field = section.model_fields[name]
    if field.default is PydanticUndefined:
        return None
    # What is validated may be completed: the bounds of the gate.
    return _without_defaults(getattr(section(), name) if field.validate_default else field.default)


def _without_defaults(value: Any) -> Any:
    """A default as it would be written: of sections only what was given."""
    if isinstance(value, Section):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items()}
    return to_jsonable_python(value)


def value_words(value: Any) -> str:
    """A value as YAML of one line has it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _plain(key: str) -> str:
    return _MARKS.sub("", key)


def _pattern(known: str) -> str:
    return r"\.".join("[^.]+" if part == "NAME" else re.escape(part) for part in _plain(known).split("."))


def _hint(key: str) -> str:
    known = list(_known())
    last = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    close = last[:1] if "." not in key else difflib.get_close_matches(key, known, n=1, cutoff=0.7) or last[:1]
    if not close:
        by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
        found = difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1, cutoff=0.7)
        close = [by_last[name] for name in found]
    return f"did you mean {close[0]}?" if close else "`ava config explain` lists the sections"
