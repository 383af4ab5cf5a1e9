"""Values written into YAML that people keep: comments, order and layout stay as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from ava_core.config.yaml_text import YamlError, read_yaml


def missing_keys(text: str, keys: list[str]) -> list[str]:
    """Those of the dotted `keys` that aren't in the text as plain keys with a single value.

    Raises:
        YamlError: the text is no YAML.
    """
    read_yaml(text)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return [key for key in keys if not isinstance(_node(root, key.split(".")), yaml.ScalarNode)]


def set_numbers(text: str, values: Mapping[str, float]) -> str:
    """The text with numbers in the place of single values, by dotted key; everything else to the letter.

    Raises:
        YamlError: the text is no YAML, a key isn't there, or its value stands for others too (an alias).
    """
    if missing := missing_keys(text, list(values)):
        raise YamlError(f"has no {missing[0]}")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    # From the end, so that the places of the others stay right.
    places = []
    for key, number in values.items():
        node = _node(root, key.split("."))
        assert node is not None  # or it would be missing
        places.append((node.start_mark.index, node.end_mark.index, number))
    edited = text
    for start, end, number in sorted(places, reverse=True):
        written = yaml.safe_dump(number).split("\n")[0]
        edited = edited[:start] + ("" if start < end else " ") + written + edited[end:]
    try:
        alone = read_yaml(edited) == _changed(read_yaml(text), values)
    except YamlError:
        alone = False
    if not alone:
        raise YamlError(f"{', '.join(values)} can't be set alone: write out what aliases stand for")
    return edited


def _node(node: yaml.Node | None, path: list[str]) -> yaml.Node | None:
    for name in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for key, value in node.value if key.value == name), None)
    return node


def _changed(values: Any, numbers: Mapping[str, float]) -> Any:
    result = json.loads(json.dumps(values))  # without what aliases share
    for key, number in numbers.items():
        *sections, name = key.split(".")
        target = result
        for section in sections:
            target = target[section]
        target[name] = number
    return result
