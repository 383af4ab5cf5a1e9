"""The MLflow run of a registration: parameters, figures, corpus and files. Writing them twice changes nothing."""

from __future__ import annotations

from pathlib import Path

from ava_core.config.run import RunConfig
from ava_core.registry.candidate import Candidate
from ava_core.registry.context import Context
from ava_core.registry.files import write_run_files
from ava_core.registry.tables import write_tables
from ava_core.registry.versions import MODEL
from ava_core.tracking.authorship import authorship
from ava_core.tracking.connection import experiment
from ava_core.tracking.labels import NOTES
from ava_core.tracking.records import Corpus, Point, describe_corpus, flatten, read_history
from ava_core.tracking.run import TrackedRun, open_run

FIGURE = "test_bits_per_byte"


def open_candidate_run(context: Context) -> TrackedRun:
    """The run of this registration: the one that the environment names, the one of a killed call, or a new one."""
    client = context.client
    return open_run(
        client,
        experiment(client, context.tracking_uri, context.config.experiment).experiment_id,
        name=_asked(context).name or f"{context.config.model_name} {context.candidate.digest[:8]}",
        identity=context.identity,
        tags=_tags(context),
    )


def fill_run(context: Context, run: TrackedRun, scratch: Path) -> None:
    """Log the candidate; `scratch` is a folder for copies of the files."""
    candidate = context.candidate
    run.log_parameters(flatten(context.resolved))
    last = last_step(candidate)
    history = candidate.model / "history.jsonl"  # of an imported model there is none
    series = read_history(history) if history.is_file() else []
    # At the last step the final figure is logged, not the one measured on a part of the split.
    run.log_points(point for point in series if point.step != last or point.name not in candidate.figures)
    run.log_points(Point(name, value, last) for name, value in candidate.figures.items())
    if (corpus := corpus_of(context)) is not None:
        run.log_corpus(corpus)
    files = scratch / "files"
    write_run_files(files, candidate, context.resolved)
    tags = write_tables(files, candidate.evaluation)
    run.log_files(files)
    run.set_tags(tags)


def corpus_of(context: Context) -> Corpus | None:
    """The shards, as MLflow's data set of the run and of the model's figures; None if it knows of none."""
    if not context.candidate.shards_digest:
        return None
    sources = context.resolved.get("data", {}).get("sources", [])
    return describe_corpus(sources, context.candidate.shards_digest, context.candidate.corpus)


def last_step(candidate: Candidate) -> int:
    """The training's last optimiser step, at which the final figures are logged."""
    return int(candidate.figures.get("steps", 0))


def describe_in_a_line(candidate: Candidate) -> str:
    """For the pages of the run and of the version."""
    figures = candidate.figures
    parts = [f"{figures[FIGURE]:.4f} bits per byte on the test text"] if FIGURE in figures else []
    for scheme in candidate.quantized:
        if f"{scheme}_{FIGURE}" in figures:
            parts.append(f"{figures[f'{scheme}_{FIGURE}']:.4f} as {scheme}")
    if "parameters" in figures:
        parts.append(f"{figures['parameters'] / 1e6:,.1f} million parameters")
    if candidate.origin:
        parts.append(str(candidate.origin))
    return ", ".join(parts)


def _tags(context: Context) -> dict[str, str]:
    tags = {MODEL: context.candidate.model_digest, **{f"ava.{key}": value for key, value in context.source.items()}}
    notes = "\n\n".join(filter(None, [describe_in_a_line(context.candidate), _asked(context).notes]))
    tags |= {**authorship("ava register"), **_asked(context).tags, NOTES: notes}
    return {**tags, "mlflow.source.git.commit": context.commit} if context.commit else tags


def _asked(context: Context) -> RunConfig:
    return RunConfig(**context.resolved.get("run", {}))
