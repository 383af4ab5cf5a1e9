"""`ava gate`: whether a model may become champion, from its evaluation and the present champion's. Changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ava_core.config.register import RegisterConfig
from ava_core.files import write_json
from ava_core.progress import Progress
from ava_core.redaction import redact_address
from ava_core.registry.candidate import Candidate, read_candidate
from ava_core.registry.evaluations import read_losses
from ava_core.registry.gates.decision import NAME, Decision, decide, gate_digest
from ava_core.registry.gates.page import to_markdown
from ava_core.registry.promotion import champion_to_beat, read_outcome
from ava_core.registry.soundness import require_sound_champion
from ava_core.registry.versions import CHAMPION, describe, find_versions, read_aliases
from ava_core.tracking.address import sqlite_file
from ava_core.tracking.connection import connect
from ava_core.tracking.faults import server_errors

log = logging.getLogger(__name__)
PAGE = "gate.md"


def gate(
    *,
    config: RegisterConfig,
    model: Path,
    quantized: Sequence[Path],
    evaluation: Path,
    output: Path,
    digests: Mapping[str, str],
    tracking_uri: str,
    progress: Progress,
) -> Decision:
    """Decide, and write decision.json and gate.md. The same evaluation and bounds give the same bytes, also after it
    was registered: the decision on record is then written again.

    Args:
        config: the section `register`.
        model: a model folder.
        quantized: output folders of quantize.
        evaluation: output folder of evaluate.
        output: an empty folder.
        digests: digests of the inputs as `run_step` verified them.
        tracking_uri: address of the MLflow server, or of a SQLite file.
        progress: shows progress.

    Raises:
        AvaError: the inputs don't belong together, the evaluation or the champion lacks a bounded figure, or the
            server doesn't answer, refuses, or fails meanwhile.
        IntegrityError: the champion's files are gone or changed.
    """
    candidate = read_candidate(model, quantized, evaluation, digests)
    with progress.task("gate", total=1) as advance:
        decision = _ask(config, candidate, tracking_uri)
        advance(1)
    _report(decision)
    write_json(output / NAME, decision.record())
    (output / PAGE).write_text(to_markdown(decision))
    return decision


def figures(decision: Decision) -> dict[str, float]:
    """The step's figures.

    `smallest_margin` is in the unit of its bound's figure (bits per byte, if the configuration adds none in others),
    negative if the gate refuses, and 0 where no bound applied.
    """
    return {
        "passed": int(decision.passed),
        "bounds_checked": len(decision.bounds),
        "bounds_failed": len(decision.failed),
        "smallest_margin": min((bound.margin for bound in decision.bounds), default=0.0),
    }


def _ask(config: RegisterConfig, candidate: Candidate, tracking_uri: str) -> Decision:
    """What was decided when this evaluation was registered, else a decision against the present champion."""
    file, read = sqlite_file(tracking_uri), partial(read_losses, config.model_name, tracking_uri)
    if file is not None and not file.is_file():  # connecting would make it, and there is nobody in it to ask for
        log.info("gate: %s: there is no registry yet, so there is no champion", redact_address(tracking_uri))
        return decide(config, candidate, None, read)
    client, name, bounds = connect(tracking_uri), config.model_name, gate_digest(config.gate)
    with server_errors(tracking_uri, "asking for the champion"):
        found = find_versions(client, name, candidate.digest)
        registered = describe(found[-1], {}) if found else None
        champion = champion_to_beat(client, name, registered.version if registered else None)
        require_sound_champion(client, name, candidate.digest)
        outcome = read_outcome(registered, bounds) if registered else None
        if registered is None or outcome is None or CHAMPION not in read_aliases(client, name):
            return decide(config, candidate, champion, read)
        log.info("gate: version %d is this very evaluation: what was decided then stands", registered.version)
        return Decision(
            model_name=name,
            evaluation=candidate.digest,
            gate=bounds,
            champion=outcome.previous,
            bounds=outcome.bounds,
        )


def _report(decision: Decision) -> None:
    for bound in decision.bounds:
        (log.info if bound.passed else log.warning)("gate: %s", bound)
    against = f"compared with version {decision.champion}" if decision.champion else "no champion so far"
    verdict = "passed" if decision.passed else "refused"
    (log.info if decision.passed else log.warning)("gate: %s (%s)", verdict, against)
