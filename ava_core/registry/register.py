"""`ava register`: a run, a model version, and the decision who is champion. Every part of it can be repeated.

A registration is identified by the digest of its evaluation: it is a tag of the run, of the logged model and of the
version, set in the very request that makes each of them. So a call that was killed anywhere goes on with what it finds,
and a second call for the same evaluation makes nothing new.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core import __version__
from ava_core.config.evaluate import GenerationConfig
from ava_core.config.register import RegisterConfig
from ava_core.registry.candidate import Candidate, read_candidate
from ava_core.registry.files import write_run_files
from ava_core.registry.gates.decision import FIGURE, TEST_BYTES, Decision, decide, gate_digest, read_decision
from ava_core.registry.logged_model import Final, find_logged_models, log_model
from ava_core.registry.promotion import Outcome, challenge, read_outcome
from ava_core.registry.registration import Registration
from ava_core.registry.soundness import find_fault, find_model_fault, require_sound_champion
from ava_core.registry.versions import (
    CHALLENGER,
    CHAMPION,
    EVALUATION,
    MODEL,
    PROMOTED,
    SOURCE,
    describe,
    figure_tags,
    find_versions,
    read_aliases,
)
from ava_core.runtime import pins
from ava_core.runtime.digests import digest_value
from ava_core.runtime.progress import Progress
from ava_core.tracking.authorship import authorship
from ava_core.tracking.commit import read_commit
from ava_core.tracking.connection import connect, experiment
from ava_core.tracking.faults import server_errors
from ava_core.tracking.records import Point, describe_corpus, flatten, read_history
from ava_core.tracking.run import TrackedRun, given_run, load_run, open_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
NAME = "ava.model_name"
MODEL_VERSION = "ava.model_version"


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What all parts of one registration need."""

    client: MlflowClient
    config: RegisterConfig
    resolved: Mapping[str, Any]
    candidate: Candidate
    decision: Decision | None
    tracking_uri: str
    commit: str | None
    output: Path

    @property
    def identity(self) -> dict[str, str]:
        return {EVALUATION: self.candidate.digest, NAME: self.config.model_name}

    @property
    def source(self) -> dict[str, str]:
        """What the model was made from."""
        source = {
            "shards": self.candidate.shards_digest,
            "config": digest_value(self.resolved),
            "version": __version__,
        }
        return {**source, "commit": self.commit} if self.commit else source


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
        model: output folder of train.
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
    candidate = read_candidate(model, quantized, evaluation)
    if digests.get("evaluation", candidate.digest) != candidate.digest:
        raise ValueError("the evaluation was changed after it was verified")
    decision = read_decision(gate, config, candidate) if gate else None
    with progress.task("register", total=4) as advance:
        context = _Context(
            client=connect(tracking_uri),
            config=config,
            resolved=resolved_config,
            candidate=candidate,
            decision=decision,
            tracking_uri=tracking_uri,
            commit=git_commit or read_commit(Path.cwd()),
            output=output,
        )
        advance(1, doing="the run")
        with server_errors(tracking_uri, "registering the model"):
            version, run = _register_once(context, lambda: advance(2, doing="the model"))
            advance(3, doing="the gate")
            outcome, aliases = _decide_once(context, version)
            registration = _describe(context, version, outcome, aliases)
            if run is not None:
                run.set_tags({MODEL_VERSION: str(version.version), PROMOTED: str(registration.promoted).lower()})
                run.close()
        advance(4)
    registration.report()
    text = json.dumps(registration.record(), indent=2, sort_keys=True)
    (output / "registration.json").write_text(text + "\n")
    return registration


def _register_once(context: _Context, on_model: Callable[[], None]) -> tuple[ModelVersion, TrackedRun | None]:
    """The version of this evaluation, found or made; with its run, or the run that the caller was given.

    One whose logged model or files are gone is made anew, with another number: a version can't be mended.
    """
    client, name = context.client, context.config.model_name
    for found in find_versions(client, name, context.candidate.digest):
        fault = find_fault(client, found)
        if fault is None:
            log.info("%s: version %s is this very evaluation: nothing is registered anew", name, found.version)
            return found, given_run(client) or load_run(client, found.run_id or "")
        log.warning("%s: version %s is this very evaluation, but %s: registering it anew", name, found.version, fault)
    place = experiment(client, context.tracking_uri, context.config.experiment)
    run = open_run(
        client,
        place.experiment_id,
        name=f"{name} {context.candidate.digest[:8]}",
        identity=context.identity,
        tags=_run_tags(context),
    )
    scratch = context.output / ".scratch"
    scratch.mkdir()
    try:
        _fill(context, run, scratch)
        on_model()
        model = _log_model_once(context, run, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _create_version(context, run, model), run


def _run_tags(context: _Context) -> dict[str, str]:
    tags = {MODEL: context.candidate.model_digest, **{f"ava.{key}": value for key, value in context.source.items()}}
    tags |= {**authorship("ava register"), "mlflow.note.content": _summary(context.candidate)}
    return {**tags, "mlflow.source.git.commit": context.commit} if context.commit else tags


def _fill(context: _Context, run: TrackedRun, scratch: Path) -> None:
    """Parameters, figures, corpus and files; writing them twice changes nothing."""
    candidate = context.candidate
    run.log_parameters(flatten(context.resolved))
    last = _last_step(candidate)
    series = read_history(candidate.model / "history.jsonl")
    # At the last step the final figure stands, not the one measured on a part of the split.
    run.log_points(point for point in series if point.step != last or point.name not in candidate.figures)
    run.log_points(Point(name, value, last) for name, value in candidate.figures.items())
    sources = context.resolved.get("data", {}).get("sources", [])
    run.log_corpus(describe_corpus(sources, candidate.shards_digest, candidate.corpus))
    files = scratch / "files"
    write_run_files(files, candidate, context.resolved)
    run.log_files(files)


def _log_model_once(context: _Context, run: TrackedRun, scratch: Path) -> LoggedModel:
    for found in find_logged_models(context.client, run.experiment_id, context.identity):
        known = pins.read(found.tags)
        if known is not None and find_model_fault(context.client, found, known) is None:
            return found
    generation = context.resolved.get("evaluate", {}).get("generation", {})
    shown = ("model", "train")
    return log_model(
        context.client,
        experiment_id=run.experiment_id,
        run_id=run.run_id,
        name=context.config.model_name,
        artifacts=context.candidate.artifacts,
        generation=GenerationConfig(**generation),
        identity=context.identity,
        parameters=flatten({key: context.resolved[key] for key in shown if key in context.resolved}),
        final=Final(figures=context.candidate.figures, step=_last_step(context.candidate), time=run.started),
        scratch=scratch,
    )


def _create_version(context: _Context, run: TrackedRun, model: LoggedModel) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    client, name = context.client, context.config.model_name
    try:
        client.create_registered_model(name, description=_how_to_use(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    figures = {
        key: value
        for key, value in {**context.candidate.figures, **context.candidate.corpus}.items()
        if key.endswith(FIGURE) or key in ("test_perplexity", "parameters", "active_parameters", TEST_BYTES)
    }
    return client.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=run.run_id,
        tags={
            EVALUATION: context.candidate.digest,
            MODEL: context.candidate.model_digest,
            SOURCE: json.dumps(context.source, sort_keys=True),
            **figure_tags(figures),
            pins.TAG: model.tags[pins.TAG],
        },
        description=_summary(context.candidate),
        model_id=model.model_id,
    )


def _decide_once(context: _Context, version: ModelVersion) -> tuple[Outcome, dict[str, int]]:
    """The outcome on record for this gate, else a new decision; with the aliases as they are afterwards.

    While there is no champion, nothing that was decided before counts.
    """
    client, name, given = context.client, context.config.model_name, context.decision
    outcome = read_outcome(describe(version, {}), gate_digest(context.config.gate))
    aliases = read_aliases(client, name)
    if outcome is None or CHAMPION not in aliases:
        if given is None:  # `ava gate` has looked
            require_sound_champion(client, name, context.candidate.digest)
        outcome = challenge(
            client,
            name,
            int(version.version),
            lambda champion: decide(context.config, context.candidate, champion),
            given,
        )
    elif CHALLENGER not in aliases:
        client.set_registered_model_alias(name, CHALLENGER, str(version.version))
    if given and given.passed != outcome.promoted:
        log.warning(
            "gate: %s against %s; what counts is the decision at the promotion, against %s",
            "had let it through" if given.passed else "had refused it",
            _opponent(given.champion),
            _opponent(outcome.previous),
        )
    return outcome, read_aliases(client, name)


def _opponent(version: int | None) -> str:
    return f"version {version}" if version else "no champion"


def _describe(context: _Context, version: ModelVersion, outcome: Outcome, aliases: dict[str, int]) -> Registration:
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


def _last_step(candidate: Candidate) -> int:
    return int(candidate.figures.get("steps", 0))


def _summary(candidate: Candidate) -> str:
    """One line for the pages of the run and of the version."""
    figures = candidate.figures
    parts = [f"{figures[FIGURE]:.4f} bits per byte on the test text"] if FIGURE in figures else []
    for scheme in candidate.quantized:
        if f"{scheme}_{FIGURE}" in figures:
            parts.append(f"{figures[f'{scheme}_{FIGURE}']:.4f} as {scheme}")
    if "parameters" in figures:
        parts.append(f"{figures['parameters'] / 1e6:,.1f} million parameters")
    return ", ".join(parts)


def _how_to_use(name: str) -> str:
    return (
        "Mixture-of-Experts language models made by Ava's pipeline. "
        f'`mlflow.pyfunc.load_model("models:/{name}@champion").predict(["To be, or"])` continues a prompt; '
        "`params` takes strategy, max_new_tokens, temperature, top_p, seed and weights."
    )
