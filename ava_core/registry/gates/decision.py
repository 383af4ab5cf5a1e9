"""The decision whether a candidate may become `champion`, and its record.

The only place that decides: `ava gate` and the promotion of `ava register` both call `decide`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ava_core.config.gate import BoundConfig
from ava_core.config.register import RegisterConfig
from ava_core.errors import AvaError, IntegrityError
from ava_core.evaluation.losses import Losses
from ava_core.registry.candidate import Candidate
from ava_core.registry.gates.bounds import Bound, bounds_from, check_bounds
from ava_core.registry.gates.significance import Evidence
from ava_core.registry.versions import MODEL, TEXT, Version
from ava_core.runtime.digests import digest_value

log = logging.getLogger(__name__)
NAME = "decision.json"
TEST_BYTES = "test_bytes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether a candidate may become champion, with the bounds that decided it.

    Attributes:
        model_name: the registered model.
        evaluation: digest of the evaluation that the decision is about.
        gate: digest of the bounds as they were configured.
        champion: the version that the candidate was compared with; None while there was none.
        bounds: each bound with the value held against it.
        other_text: the champion was measured on another text, so the bounds relative to it couldn't be held.
    """

    model_name: str
    evaluation: str
    gate: str
    champion: int | None
    bounds: list[Bound]
    other_text: bool = False

    @property
    def passed(self) -> bool:
        """Whether all bounds hold; those that can't be held don't."""
        return not self.other_text and all(bound.passed for bound in self.bounds)

    @property
    def failed(self) -> list[Bound]:
        """The bounds that don't hold."""
        return [bound for bound in self.bounds if not bound.passed]

    def record(self) -> dict[str, Any]:
        """The contents of decision.json."""
        return {
            "model_name": self.model_name,
            "evaluation": self.evaluation,
            "gate": self.gate,
            "champion": self.champion,
            "bounds": [bound.record() for bound in self.bounds],
            "passed": self.passed,
            **({"other_text": True} if self.other_text else {}),
        }


def decide(
    config: RegisterConfig, candidate: Candidate, champion: Version | None, read_losses: Callable[[int], Losses]
) -> Decision:
    """Hold a candidate against the gate, given the present champion, or None while there is none.

    Args:
        config: the section `register`.
        candidate: what is held against the gate.
        champion: what it is compared with.
        read_losses: gives the losses by document of a version, which bounds with significance ask for.

    Raises:
        AvaError: the candidate lacks a figure that is bounded, or the champion has none on record.
    """
    gate, other_text = _comparable(config.gate, candidate, champion)
    figures = champion.figures if champion else None
    return Decision(
        model_name=config.model_name,
        evaluation=candidate.digest,
        gate=gate_digest(config.gate),
        champion=champion.version if champion else None,
        bounds=check_bounds(
            gate,
            candidate.figures,
            candidate.quantized,
            figures,
            _evidence(config, candidate, champion, read_losses),
        ),
        other_text=other_text,
    )


def _evidence(
    config: RegisterConfig, candidate: Candidate, champion: Version | None, read_losses: Callable[[int], Losses]
) -> Evidence | None:
    """What bounds with significance look at; None if there are none, so that nothing is fetched."""
    if not any(bound.enabled and bound.significance for bound in config.gate.values()):
        return None
    return Evidence(candidate.evaluation, partial(read_losses, champion.version if champion else 0))


def gate_digest(gate: Mapping[str, BoundConfig]) -> str:
    """Digest of the bounds that are in force: a decision is on record for these very ones."""
    return digest_value({name: _in_force(bound) for name, bound in gate.items() if bound.enabled})


def _in_force(bound: BoundConfig) -> dict[str, Any]:
    """A bound's keys; those of significance only where it is asked for, as in the digests of decisions before it."""
    keys = bound.model_dump(mode="json")
    return {key: value for key, value in keys.items() if key not in ("significance", "must_be_better") or value}


def read_decision(folder: Path, config: RegisterConfig, candidate: Candidate) -> Decision:
    """The decision of `ava gate` about this candidate at these bounds.

    Raises:
        AvaError: it is about something else.
        IntegrityError: it can't be read.
    """
    path = folder / NAME
    try:
        record = json.loads(path.read_text())
        names = ("model_name", "evaluation", "gate", "champion")
        decision = Decision(
            **{name: record[name] for name in names},
            bounds=bounds_from(record["bounds"]),
            other_text=record.get("other_text", False),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise IntegrityError(f"{path}: can't be read ({reason}): run `ava gate` again") from error
    for about, given, wanted in (
        ("another evaluation", decision.evaluation, candidate.digest),
        (f"the registered model {decision.model_name}", decision.model_name, config.model_name),
        ("other bounds", decision.gate, gate_digest(config.gate)),
    ):
        if given != wanted:
            raise AvaError(
                f"{path}: is about {about}: run `ava gate` with the parameters and the --evaluation given here"
            )
    return decision


def _comparable(
    gate: Mapping[str, BoundConfig], candidate: Candidate, champion: Version | None
) -> tuple[Mapping[str, BoundConfig], bool]:
    """The bounds that can be held, and whether some can't, because the champion was measured on another text.

    The champion's own model, measured on another text, takes its place there: it is no worse than itself.
    """
    if champion is None or _same_text(candidate, champion):
        return gate, False
    relative = [name for name, bound in gate.items() if bound.enabled and bound.to_champion]
    others = {name: bound for name, bound in gate.items() if not bound.to_champion}
    if not relative or champion.tags.get(MODEL) == candidate.model_digest:
        return others, False
    log.warning(
        "gate: version %d, the champion, was measured on another text, and figures of two texts don't compare: evaluate"
        " and register its model on the shards given here, then this one again; or decide without it (%s)",
        champion.version,
        " ".join(f"--set register.gate.{name}.enabled=false" for name in relative),
    )
    return others, True


def _same_text(candidate: Candidate, champion: Version) -> bool:
    """Whether both were measured on one text; where one of them doesn't say, a warning if its size differs."""
    if TEXT in champion.tags and candidate.text:
        return champion.tags[TEXT] == candidate.text
    ours = candidate.corpus.get(TEST_BYTES)
    theirs = champion.figures.get(TEST_BYTES, ours)
    if ours != theirs:
        log.warning(
            "gate: the champion, version %d, was measured on another test text (%.0f bytes, here %.0f):"
            " comparing the two means little",
            champion.version,
            theirs or 0,
            ours or 0,
        )
    return True
