"""`ava register`: a run, a model version, and the decision who is champion. Every part of it can be repeated.

A registration is identified by the digest of its evaluation: it is a tag of the run, of the logged model and of the
version, set in the very request that makes each of them. So a call that was killed anywhere goes on with what it finds,
and a second call for the same evaluation makes nothing new.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.config.register import RegisterConfig
from ava_core.files import write_json
from ava_core.progress import Progress
from ava_core.registry.candidate import Candidate, read_candidate
from ava_core.registry.context import Context
from ava_core.registry.create_version import find_or_create_version
from ava_core.registry.evaluations import read_losses
from ava_core.registry.gates.decision import decide, gate_digest, read_decision
from ava_core.registry.promotion import Outcome, promote, read_outcome
from ava_core.registry.registration import Registration
from ava_core.registry.soundness import require_sound_champion
from ava_core.registry.versions import CHALLENGER, CHAMPION, PROMOTED, describe, read_aliases
from ava_core.tracking.commit import read_commit
from ava_core.tracking.connection import connect
from ava_core.tracking.faults import server_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
MODEL_VERSION = "ava.model_version"


def register(
    *,
    config: RegisterConfig,
    resolved_config: Mapping[str, Any],
    model: Path,
    quantized: Sequence[Path],
    evaluation: Path,
    gate: Path | None,
    output: Path,
    digests: Mapping[str, str],
    tracking_uri: str,
    git_commit: str | None,
    progress: Progress,
) -> Registration:
    """Log the run, register the model, promote it or not, and write registration.json.

    Args:
        config: the section `register`.
        resolved_config: the whole configuration, as plain values; logged as the run's parameters.
        model: a model folder.
        quantized: output folders of quantize.
        evaluation: output folder of evaluate.
        gate: output folder of gate: what it refused is not promoted. None: decide as it would.
        output: an empty folder.
        digests: digests of the inputs as `run_step` verified them.
        tracking_uri: address of the MLflow server, or of a SQLite file.
        git_commit: commit of code and parameters; by default that of the current folder, where it has one.
        progress: shows progress.

    Raises:
        AvaError: the inputs don't belong together, or the server doesn't answer, refuses, or fails meanwhile.
        IntegrityError: the files of the champion to compare with are gone or changed.
    """
    candidate = read_candidate(model, quantized, evaluation, digests)
    decision = read_decision(gate, config, candidate) if gate else None
    with progress.task("register", total=4) as advance:
        context = Context(
            client=connect(tracking_uri),
            config=config,
            resolved=_of_this_model(resolved_config, candidate),
            candidate=candidate,
            decision=decision,
            tracking_uri=tracking_uri,
            commit=git_commit or read_commit(Path.cwd()),
            output=output,
        )
        advance(1, doing="the run")
        with server_errors(tracking_uri, "registering the model"):
            version, run = find_or_create_version(context, lambda: advance(2, doing="the model"))
            advance(3, doing="the gate")
            outcome, aliases = _decide_once(context, version)
            registration = _describe(context, version, outcome, aliases)
            if run is not None:
                run.set_tags({MODEL_VERSION: str(version.version), PROMOTED: str(registration.promoted).lower()})
                run.close()
        advance(4)
    registration.report()
    write_json(output / "registration.json", registration.record())
    return registration


def _of_this_model(resolved: Mapping[str, Any], candidate: Candidate) -> Mapping[str, Any]:
    """The configuration without what it says of a training, for a model that wasn't trained by it."""
    if candidate.manifests["model"].step != "import":
        return resolved
    return {name: section for name, section in resolved.items() if name not in ("model", "train")}


def _decide_once(context: Context, version: ModelVersion) -> tuple[Outcome, dict[str, int]]:
    """The outcome on record for this gate, else a new decision; with the aliases as they are afterwards.

    While there is no champion, nothing that was decided before counts.
    """
    client, name, given = context.client, context.config.model_name, context.decision
    outcome = read_outcome(describe(version, {}), gate_digest(context.config.gate))
    aliases = read_aliases(client, name)
    if outcome is None or CHAMPION not in aliases:
        if given is None:  # else `ava gate` has checked it
            require_sound_champion(client, name, context.candidate.digest)
        read = partial(read_losses, name, context.tracking_uri)
        outcome = promote(
            client,
            name,
            int(version.version),
            lambda champion: decide(context.config, context.candidate, champion, read),
            given,
        )
    elif CHALLENGER not in aliases:
        client.set_registered_model_alias(name, CHALLENGER, str(version.version))
    if given and given.passed != outcome.promoted:
        log.warning(
            "gate: %s against %s; what counts is the decision at the promotion, against %s",
            "had let it through" if given.passed else "had refused it",
            _named(given.champion),
            _named(outcome.previous),
        )
    return outcome, read_aliases(client, name)


def _named(version: int | None) -> str:
    return f"version {version}" if version else "no champion"


def _describe(context: Context, version: ModelVersion, outcome: Outcome, aliases: dict[str, int]) -> Registration:
    logged_model_id = (version.source or "").removeprefix("models:/")
    return Registration(
        name=context.config.model_name,
        version=int(version.version),
        aliases=describe(version, aliases).aliases,
        champion=aliases.get(CHAMPION),
        outcome=outcome,
        given=context.decision,
        run_id=version.run_id or "",
        experiment_id=context.client.get_logged_model(logged_model_id).experiment_id,
        logged_model_id=logged_model_id,
        tracking_uri=context.tracking_uri,
    )
