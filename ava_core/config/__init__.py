"""Typed configuration: `schema` says what there is, `layers` where a value comes from, `presets` what is shipped.

Imports nothing heavy and knows no other part of Ava.
"""

from ava_core.config.layers import Resolved, resolve
from ava_core.config.schema import AvaConfig
from ava_core.config.yaml_text import to_yaml

__all__ = ["AvaConfig", "Resolved", "resolve", "to_yaml"]
