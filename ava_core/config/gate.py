"""The bounds of the gate: what a version must keep to become champion."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from ava_core.config.section import Section, Weight
from ava_core.errors import shorten

CHAMPION = "champion"
"""As a reference: the same figure of the present champion."""
EACH_SCHEME = "quantized_"
"""Prefix of a figure's name: that figure of each quantised model."""
LARGEST = 1e12
PER_DOCUMENT = ("test_bits_per_byte", "test_loss", "test_perplexity", "test_accuracy", "test_top5_accuracy")
"""Figures that have a value on every document, so that a difference of theirs can be significant."""
_FIGURE = r"[A-Za-z_][A-Za-z0-9_./-]*"

BoundName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
FigureName = Annotated[str, Field(pattern=f"^{_FIGURE}$")]


def _reference(value: Any) -> float | str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value) or abs(value) > LARGEST:
            raise PydanticCustomError("reference_range", f"must be finite, and at most {LARGEST:g} in size")
        return float(value)
    if isinstance(value, str) and re.fullmatch(_FIGURE, value):
        return value
    raise PydanticCustomError("reference_type", f"must be a number, {CHAMPION}, or a figure's name")


Reference = Annotated[float | str, PlainValidator(_reference)]


def per_document(figure: str) -> str | None:
    """The name without a scheme of a figure in PER_DOCUMENT; None for others."""
    found = re.fullmatch(rf"(?:[a-z0-9]+_)?({'|'.join(PER_DOCUMENT)})", figure)
    return found[1] if found else None


class BoundConfig(Section):
    """One bound on a figure of the evaluation: `at_most` or `at_least` what it is compared with."""

    figure: FigureName
    """A figure of train or evaluate, or, after the scheme and an underscore, of quantize or evaluate for a quantised
    model (int8_test_accuracy). quantized_NAME: NAME of each quantised model."""
    at_most: Reference | None = None
    """What the figure is compared with: a number, another figure of the same model, or `champion`, which is the
    champion's same figure; without a champion that bound isn't checked."""
    at_least: Reference | None = None
    """The same for figures of which more is better."""
    tolerance: Weight = 0.0
    """How much worse than the champion or the other figure it may be, in the figure's own unit. Not a share: figures
    may be 0 (dead_experts) or differ in scale from their error."""
    significance: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Refuse only what is worse with confidence: where the whole interval (two-sided, of confidence 1 - significance,
    paired bootstrap over the test text) of the difference lies beyond the tolerance. Relative to `champion` or a
    figure, for figures with a value on every document."""
    must_be_better: bool = False
    """With significance: pass only what is better with confidence: where that whole interval lies on the better side of
    the tolerance."""
    only_without_champion: bool = False
    """Checked only while the registered model has no champion."""
    enabled: bool = True
    """false: not checked."""

    @property
    def reference(self) -> float | str:
        """What the figure is compared with."""
        return next(value for value in (self.at_most, self.at_least) if value is not None)

    @property
    def to_champion(self) -> bool:
        """Whether the figure is compared with the champion's."""
        return self.reference == CHAMPION

    @model_validator(mode="after")
    def _has_one_side(self) -> BoundConfig:
        if (self.at_most is None) == (self.at_least is None):
            given = "neither at_most nor at_least" if self.at_most is None else "both at_most and at_least"
            raise ValueError(f"has {given}: give one of them")
        if self.tolerance and not isinstance(self.reference, str):
            raise ValueError(
                f"tolerance = {self.tolerance:g}: only for a bound relative to {CHAMPION} or to a figure:"
                f" {self.reference:g} is the limit itself"
            )
        self._require_paired()
        if self.reference == self.figure:
            raise ValueError(f"figure = {self.figure}: compared with itself, it would always pass")
        if str(self.reference).startswith(EACH_SCHEME) and not self.figure.startswith(EACH_SCHEME):
            raise ValueError(f"figure = {self.figure}: {self.reference} is one for each quantised model: bound those")
        if self.only_without_champion and self.to_champion:
            raise ValueError("only_without_champion = true: compares with the champion, so it would never be held")
        return self

    def _require_paired(self) -> None:
        if self.significance is None:
            if self.must_be_better:
                raise ValueError("must_be_better = true: says nothing without significance: give one, such as 0.05")
            return
        name = per_document(self.figure)
        if name is None:
            raise ValueError(
                f"figure = {self.figure}: has no value by document, which significance needs: those with one are"
                f" {', '.join(PER_DOCUMENT)}"
            )
        if not isinstance(self.reference, str):
            raise ValueError(
                f"significance = {self.significance:g}: only for a bound relative to {CHAMPION} or to a figure:"
                f" {self.reference:g} is a number"
            )
        if not self.to_champion and per_document(self.reference) != name:
            raise ValueError(
                f"significance = {self.significance:g}: {self.figure} and {self.reference} have no difference: compare"
                f" with {name} of another model"
            )


DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "max_bits_per_byte": {"figure": "test_bits_per_byte", "at_most": 2.3, "only_without_champion": True},
    "tolerance_bits_per_byte": {"figure": "test_bits_per_byte", "at_most": CHAMPION, "tolerance": 0.01},
    "max_quantized_increase": {
        "figure": f"{EACH_SCHEME}test_bits_per_byte",
        "at_most": "test_bits_per_byte",
        "tolerance": 0.02,
    },
}
"""Bounds that are checked unless the configuration says otherwise: an absolute one for the first champion, a tolerance
for those after it, and one for every quantised model against its float model."""


def with_defaults(given: Any) -> Any:
    """The bounds of a configuration over the default ones, key by key.

    Raises:
        ValueError: a bound that is no default one names no figure.
    """
    if not isinstance(given, Mapping):
        return given
    for name, bound in given.items():
        if isinstance(bound, Mapping) and "figure" not in bound and name not in DEFAULTS:
            close = difflib.get_close_matches(name, DEFAULTS, n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise ValueError(f"{shorten(name)}.figure: is missing{hint}")
    changed = {
        name: {**bound, **given.get(name, {})} if isinstance(given.get(name, {}), Mapping) else given[name]
        for name, bound in DEFAULTS.items()
    }
    return {**changed, **{name: bound for name, bound in given.items() if name not in DEFAULTS}}
