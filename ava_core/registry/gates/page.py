"""The decision as a page for people, gate.md."""

from __future__ import annotations

from ava_core.registry.gates.bounds import Bound, shown
from ava_core.registry.gates.decision import Decision

BITS_PER_BYTE = "test_bits_per_byte"


def to_markdown(decision: Decision) -> str:
    """What the candidate was compared with, each bound, and what becomes of the decision."""
    name = decision.model_name
    against = (
        f"version {decision.champion}, the champion of `{name}`"
        if decision.champion
        else f"the absolute bound, for `{name}` has no champion"
    )
    sides = {bound.side for bound in decision.bounds}
    one_side = sides.pop() if len(sides) == 1 else None
    rows = "\n".join(_row(bound, one_side is None) for bound in decision.bounds)
    failed, checked = len(decision.failed), len(decision.bounds)
    reason = (
        "The champion was measured on another text, so the bounds relative to it can't be held: evaluate and register"
        " its model on this text first.\n\n"
        if decision.other_text
        else ""
    )
    consequence = (
        "`ava register` makes it champion, unless another version has become champion by then and is too far ahead."
        if decision.passed
        else f"{reason}{failed} of {checked} bounds failed: `ava register` keeps it as challenger."
    )
    return f"""# Gate: {"passed" if decision.passed else "refused"}

Compared with {against}.
{_unit(decision)} the bounds are keys of `register.gate`.

| figure | value | {one_side or "limit"} | by | bound | |
|---|---:|---:|---:|---|---|
{rows}

{consequence}

Evaluation: `{decision.evaluation}`
"""


def _unit(decision: Decision) -> str:
    if all(bound.figure.endswith(BITS_PER_BYTE) for bound in decision.bounds):
        return "Figures are bits per byte of the test text;"
    return f"Figures are in their own units (those of `{BITS_PER_BYTE}`: bits per byte of the test text);"


def _row(bound: Bound, name_side: bool) -> str:
    cells = (
        f"`{bound.figure}`",
        shown(bound.value),
        f"{bound.side} {shown(bound.limit)}" if name_side else shown(bound.limit),
        bound.interval or f"{shown(abs(bound.margin))} {'below' if bound.passed != bound.at_least else 'above'}",
        f"`{bound.bound}`",
        "passed" if bound.passed else "**failed**",
    )
    return f"| {' | '.join(cells)} |"
