"""What a configuration must say for a conversion to be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from transformers import PreTrainedConfig


class Rule(NamedTuple):
    """What a field must be for a conversion to be exact. A configuration without the field satisfies it."""

    field: str
    holds: Callable[[Any], bool]
    must_be: str
    because: str


def check(config: PreTrainedConfig, rules: tuple[Rule, ...], target: str) -> None:
    """Refuse a configuration that breaks a rule.

    Raises:
        ValueError: the first one that is broken, by field and value.
    """
    for rule in rules:
        if hasattr(config, rule.field) and not rule.holds(value := getattr(config, rule.field)):
            raise ValueError(f"{rule.field} = {value!r}: must be {rule.must_be} for {target}: {rule.because}")
