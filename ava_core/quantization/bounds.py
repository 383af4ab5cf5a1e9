"""The parity gate: figures of an exported model against the bounds of its scheme."""

from __future__ import annotations

from collections.abc import Mapping

from ava_core.config.quantize import QuantizeConfig
from ava_core.errors import ParityError
from ava_core.steps.schemes import SCHEMES

EXPORT_ERROR = 1e-3
"""Bound on the mean absolute error of logits between two float32 computations; rounding leaves about 1e-6."""
SELF_ERROR = 2e-3
"""Bound on the mean absolute error of logits between two ways to run one graph. Where activations are rounded to int8,
the last bits of a float decide which integer a few of them become, which leaves up to 1e-4 on a trained
model; a cache that loses 8 of 256 positions in one layer leaves 4e-3."""


def require_parity(figures: Mapping[str, float], scheme: str, config: QuantizeConfig) -> None:
    """Refuse a model that is further from its original than the scheme's bounds allow.

    Args:
        figures: as `measure_all` gives them.
        scheme: name of a scheme.
        config: the `quantize` section.

    Raises:
        ParityError: one line for each bound that is broken: which, by what, and by how much.
    """
    faults = []

    def at_most(name: str, bound: float, where: str) -> None:
        if not figures[name] <= bound:
            faults.append(
                f"{scheme}: parity_{name} = {figures[name]:.4g}: must be <= {bound:.4g} ({where}), is"
                f" {figures[name] - bound:.2g} more"
            )

    def at_least(name: str, bound: float, where: str) -> None:
        if not figures[name] >= bound:
            faults.append(
                f"{scheme}: parity_{name} = {figures[name]:.4g}: must be >= {bound:.4g} ({where}), is"
                f" {bound - figures[name]:.2g} less"
            )

    fixed = "what rounding in float32 allows"
    at_most("export_mean_abs_error", EXPORT_ERROR, fixed)
    at_most("cached_mean_abs_error", SELF_ERROR, "the same graph without the cache")
    at_most("padded_mean_abs_error", SELF_ERROR, "the same graph, each row alone")
    if SCHEMES[scheme].rounds:
        settings, at = getattr(config, scheme), f"quantize.{scheme}"
        at_most("increase_percent", settings.max_increase_percent, f"{at}.max_increase_percent")
        at_least("expert_agreement", settings.min_expert_agreement, f"{at}.min_expert_agreement")
        at_least("top1_agreement", settings.min_top1_agreement, f"{at}.min_top1_agreement")
        if "long_context_increase_percent" in figures:
            at_most("long_context_increase_percent", settings.max_increase_percent, f"{at}.max_increase_percent")
    else:
        at_most("mean_abs_error", EXPORT_ERROR, fixed)
    if faults:
        raise ParityError("\n".join(faults))
