"""The version of an evaluation: found in the registry, or made with its run and its logged model."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.config.generation import GenerationConfig
from ava_core.registry.context import Context
from ava_core.registry.gates.bounds import bounded_figures
from ava_core.registry.gates.decision import TEST_BYTES
from ava_core.registry.logged_model import Final, find_logged_models, log_model
from ava_core.registry.run import FIGURE, corpus_of, describe_in_a_line, fill_run, last_step, open_candidate_run
from ava_core.registry.soundness import find_fault, find_model_fault
from ava_core.registry.versions import EVALUATION, INDEX, MODEL, SOURCE, TEXT, figure_tags, find_versions, origin_tags
from ava_core.runtime import pins
from ava_core.tracking.records import flatten
from ava_core.tracking.run import TrackedRun, given_run, load_run

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
HEADLINES = (FIGURE, "test_perplexity", "parameters", "active_parameters", TEST_BYTES)
"""Figures that a version shows under their own names, beside those that the gate bounds."""


def find_or_create_version(context: Context, on_model: Callable[[], None]) -> tuple[ModelVersion, TrackedRun | None]:
    """The version of this evaluation, found or made; with its run, or the run that the caller was given.

    A version whose logged model or files are gone is made anew, with another number: a version can't be mended.

    Args:
        context: the registration.
        on_model: called when the run is written and the model is next.
    """
    client, name = context.client, context.config.model_name
    for found in find_versions(client, name, context.candidate.digest):
        fault = find_fault(client, found)
        if fault is None:
            log.info("%s: version %s is this very evaluation: nothing is registered anew", name, found.version)
            return found, given_run(client) or load_run(client, found.run_id or "")
        log.warning("%s: version %s is this very evaluation, but %s: registering it anew", name, found.version, fault)
    run = open_candidate_run(context)
    scratch = context.output / ".scratch"
    scratch.mkdir()
    try:
        fill_run(context, run, scratch)
        on_model()
        model = _log_model_once(context, run, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _create_version(context, run, model), run


def _log_model_once(context: Context, run: TrackedRun, scratch: Path) -> LoggedModel:
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
        final=Final(
            figures=context.candidate.figures,
            step=last_step(context.candidate),
            time=run.started,
            dataset=corpus.as_dataset() if (corpus := corpus_of(context)) else {},
        ),
        scratch=scratch,
    )


def _create_version(context: Context, run: TrackedRun, model: LoggedModel) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    client, name = context.client, context.config.model_name
    try:
        client.create_registered_model(name, description=_how_to_use(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    candidate = context.candidate
    bounded = bounded_figures(context.config.gate, candidate.quantized)
    return client.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=run.run_id,
        tags={
            EVALUATION: candidate.digest,
            MODEL: candidate.model_digest,
            SOURCE: json.dumps(context.source, sort_keys=True),
            **({TEXT: candidate.text} if candidate.text else {}),
            **({INDEX: candidate.index} if candidate.index else {}),
            **figure_tags({**candidate.figures, **candidate.corpus}, {*HEADLINES, *bounded}),
            **origin_tags(candidate.origin),
            pins.TAG: model.tags[pins.TAG],
        },
        description=describe_in_a_line(candidate),
        model_id=model.model_id,
    )


def _how_to_use(name: str) -> str:
    return (
        "Mixture-of-Experts language models made by Ava's pipeline. "
        f'`mlflow.pyfunc.load_model("models:/{name}@champion").predict(["To be, or"])` continues a prompt; '
        "`params` takes strategy, max_new_tokens, temperature, top_p, seed and weights."
    )
