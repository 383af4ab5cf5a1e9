"""The schemes of quantisation by name, in the order in which tables and reports have them."""

from __future__ import annotations

from typing import Literal, get_args

SchemeName = Literal["fp32", "int8", "int4"]
SCHEMES: tuple[str, ...] = get_args(SchemeName)
