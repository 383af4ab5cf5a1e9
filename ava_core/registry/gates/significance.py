"""Bounds that ask for significance: the interval of a difference, from losses by document.

The null hypothesis is that the candidate is as good as what it is compared with, on texts like the test text (with a
tolerance: worse by exactly that much). The interval is the two-sided paired bootstrap interval of
`ava_core.evaluation.comparison`, with confidence 1 - significance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ava_core.config.gate import per_document
from ava_core.evaluation import losses
from ava_core.evaluation.comparison.bootstrap import RESAMPLES, SEED, Difference
from ava_core.evaluation.comparison.matching import MIN_UNITS, OtherTextError, match
from ava_core.evaluation.losses import FLOAT, Losses, NoLossesError

log = logging.getLogger(__name__)
REMEDY = "the figures themselves are compared, with the bound's tolerance and without significance"


class Evidence:
    """Losses by document of a candidate, and of the champion if that is asked for; each is read once.

    Args:
        evaluation: the candidate's evaluation.
        champion: gives the champion's losses; raises NoLossesError where it has none.
    """

    def __init__(self, evaluation: Path, champion: Callable[[], Losses]) -> None:
        self._evaluation, self._read_champion = evaluation, champion
        self._mine: Losses | None = None
        self._champion: Losses | None = None

    def difference(self, bound: str, figure: str, reference: str | None, significance: float) -> Difference | None:
        """A figure of the candidate less what it is compared with; None, and a warning, where there is no interval.

        Args:
            bound: its name, for the warning.
            figure: such as int8_test_bits_per_byte.
            reference: the same figure of another model of the candidate; None: the champion's same figure.
            significance: 1 less the confidence of the interval.

        Raises:
            IntegrityError: losses are damaged.
            AvaError: the registry doesn't answer.
        """
        try:
            base = self._losses() if reference is not None else self._champions()
            matched = match([("the champion", base), ("the candidate", self._losses())])
            name, model = per_document(figure) or figure, _model(figure)
            base_model = _model(reference or figure)
            if model not in self._losses().sums or base_model not in base.sums:
                raise NoLossesError(f"there are no losses of the {base_model} model")
            (found,) = matched.differences(
                [(1, model, name)], base_model, significance=significance, resamples=RESAMPLES, seed=SEED
            )
        except (NoLossesError, OtherTextError) as error:
            _fall_back(bound, error)
            return None
        if found.low is None:
            _fall_back(bound, f"the test text has {matched.units} parts, {MIN_UNITS} are needed")
            return None
        return found

    def _losses(self) -> Losses:
        self._mine = self._mine or losses.read(self._evaluation)
        return self._mine

    def _champions(self) -> Losses:
        self._champion = self._champion or self._read_champion()
        return self._champion


def _model(figure: str) -> str:
    """The model that a figure is of: `float`, or the scheme before its name."""
    return figure.removesuffix(per_document(figure) or "").removesuffix("_") or FLOAT


def _fall_back(bound: str, reason: Exception | str) -> None:
    log.warning("gate: %s: %s: %s", bound, str(reason).replace(": run `ava evaluate` again", ""), REMEDY)
