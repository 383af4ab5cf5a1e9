"""`ava show`: what outputs, MLflow runs, registered versions and kept work there are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ava_core.steps.table import STEPS
from ava_core.steps.tools import TOOLS

if TYPE_CHECKING:
    from ava_core.config.run import RunConfig
    from ava_core.runtime.inventory import Broken, Output
    from ava_core.runtime.work import Entry

PIPELINE_RUNS = Path(".ava/runs")
"""Where `make pipeline-local` keeps its runs: hidden, so a search of the current folder passes it over."""


def show(
    folder: Annotated[Path, typer.Argument(help="Folder that is searched for finished outputs.")] = Path(),
    work: Annotated[
        bool,
        typer.Option("--work", help="Show the work folder (cache) instead: unfinished and finished work of the steps."),
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="With --work: remove old work, and the oldest beyond a size.")
    ] = False,
    max_age_days: Annotated[
        float, typer.Option(min=0, help="With --prune: remove work that was last used more than so many days ago.")
    ] = 30.0,
    max_gigabytes: Annotated[
        float,
        typer.Option(
            min=0, help="With --prune: then remove the least recently used work beyond this size, in 10^9 bytes."
        ),
    ] = 20.0,
    work_folder: Annotated[Path, typer.Option("--work-folder", envvar="AVA_WORK", help="The work folder.")] = Path(
        ".ava/work"
    ),
    registry: Annotated[
        bool, typer.Option("--registry", help="Show the versions in the MLflow registry instead.")
    ] = False,
    model_name: Annotated[str, typer.Option(help="With --registry: the registered model.")] = "ava-moe",
    runs: Annotated[bool, typer.Option("--runs", help="Show the latest MLflow runs instead.")] = False,
) -> None:
    """Show what runs and outputs there are."""
    if work or prune:
        _show_work(work_folder, prune, max_age_days, max_gigabytes)
    elif registry:
        _show_registry(model_name)
    elif runs:
        _show_runs()
    else:
        broken = _show_outputs(folder)
        _mention_unfinished(work_folder)
        _require_whole(broken)


def _show_outputs(folder: Path) -> list[Broken]:
    """Print a row for each output; those that are damaged."""
    from ava_core.errors import AvaError
    from ava_core.runtime.inventory import Broken, find_outputs
    from ava_core.tracking.labels import read_labels

    if not folder.is_dir():
        raise AvaError(f"{folder}: no such folder")
    rows: list[tuple[str, ...]] = []
    broken = []
    outputs = [*find_outputs(folder), *_latest_pipeline_run(folder)]
    folders = {item.manifest.digest: str(item.folder) for item in outputs if not isinstance(item, Broken)}
    for output in outputs:
        if isinstance(output, Broken):
            rows.append(("damaged", str(output.folder), "", "", output.fault, ""))
            broken.append(output)
            continue
        spec = {**STEPS, **TOOLS}.get(output.manifest.step)
        known = {**output.timings, **output.metrics}
        figures = [f"{name} {known[name]:,.6g}" for name in (spec.headlines if spec else ()) if name in known]
        if parent := output.manifest.inputs.get("init"):
            figures.append(f"began from {folders.get(parent, parent[:12])}")
        if teacher := output.manifest.inputs.get("teacher"):
            figures.append(f"taught by {folders.get(teacher, teacher[:12])}")
        if index := output.manifest.inputs.get("index"):
            figures.append(f"looked up in {folders.get(index, index[:12])}")
        if (origin := _origin(output.folder)) is not None:
            figures.append(origin)
        seconds = f"{output.timings['wall_seconds']:.0f} s" if "wall_seconds" in output.timings else ""
        rows.append(
            (
                output.manifest.step,
                str(output.folder),
                f"{output.size / 1e6:,.1f} MB",
                seconds,
                ", ".join(figures),
                _labelled(read_labels(output.folder)),
            )
        )
    header: tuple[str, ...] = ("step", "output", "size", "took", "figures", "run")
    if not any(row[-1] for row in rows):  # a column for those who name their runs
        header, rows = header[:-1], [row[:-1] for row in rows]
    print_table(header, rows, f"no finished outputs below {folder.resolve()}")
    return broken


def _labelled(run: RunConfig) -> str:
    """Name, tags and the first line of the notes of the section `run`."""
    from ava_core.errors import one_line

    tags = " ".join(f"{name}={value}" for name, value in run.tags.items())
    parts = (run.name or "", f"[{tags}]" if tags else "", (run.notes or "").split("\n")[0])
    return one_line(" ".join(filter(None, parts)))


def _origin(folder: Path) -> str | None:
    """Where a model comes from, and its licence, if it wasn't trained here from the beginning."""
    from ava_core.origin import read_origin

    origin = read_origin(folder)
    return str(origin) if origin else None


def _require_whole(broken: list[Broken]) -> None:
    from ava_core.errors import AvaError

    if broken:
        others = f" (and {len(broken) - 1} more are damaged)" if broken[1:] else ""
        raise AvaError(f"{broken[0].fault}{others}")


def _latest_pipeline_run(folder: Path) -> list[Output | Broken]:
    """The outputs of the newest pipeline run, unless another folder than the current one was asked for."""
    from ava_core.runtime.inventory import find_outputs

    runs = sorted(path for path in PIPELINE_RUNS.glob("*-[0-9]*") if path.is_dir())
    return list(find_outputs(runs[-1])) if runs and folder == Path() else []


def _mention_unfinished(folder: Path) -> None:
    from ava_core.runtime.work import WorkStore

    unfinished = [step for step, entry, _, _ in WorkStore(folder).entries() if not entry.output.is_dir()]
    if unfinished:
        print(f"\nunfinished in {folder}: {', '.join(sorted(unfinished))} (see `ava show --work`)")


def _show_work(folder: Path, prune: bool, max_age_days: float, max_gigabytes: float) -> None:
    import time

    from ava_core.runtime.work import WorkStore

    store = WorkStore(folder)
    if prune:
        removed = store.prune(max_age_days, int(max_gigabytes * 1e9))
        print(f"removed {len(removed)} of the entries in {folder}")
    rows = [
        (
            step,
            entry.folder.name[:12],
            _state(entry),
            f"{size / 1e6:,.1f} MB",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(used)),
        )
        for step, entry, size, used in reversed(store.entries())
    ]
    print_table(("step", "key", "state", "size", "last used"), rows, f"no work in {folder}")


def _state(entry: Entry) -> str:
    """Whether it is finished, and what it has kept beside its output."""
    if not entry.output.is_dir():
        return "unfinished"
    kept = sorted(path.name for path in entry.kept.iterdir()) if entry.kept.is_dir() else []
    return f"finished, with {', '.join(kept)}" if kept else "finished"


def _show_registry(model_name: str) -> None:
    from ava_core.registry import list_versions
    from ava_core.registry.versions import MODEL
    from ava_core.tracking import tracking_uri

    versions = list_versions(model_name, tracking_uri())
    numbers = {version.tags.get(MODEL): f"version {version.version}" for version in versions}
    rows = [
        (
            str(version.version),
            ", ".join(version.aliases),
            numbers.get(version.parent, version.parent[:12]),
            ", ".join(f"{name} {value:.6g}" for name, value in version.headlines.items()),
        )
        for version in versions
    ]
    print_table(("version", "aliases", "began from", "figures"), rows, f"no versions of {model_name}")


def _show_runs() -> None:
    from ava_core.tracking import tracking_uri
    from ava_core.tracking.listing import list_runs

    rows = [
        (
            run.name,
            run.experiment,
            run.status,
            run.started,
            ", ".join(f"{k} {v:.6g}" for k, v in run.figures.items()),
            run.notes,
        )
        for run in list_runs(tracking_uri())
    ]
    print_table(("run", "experiment", "status", "started", "figures", "notes"), rows, "no MLflow runs")


def print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], nothing: str) -> None:
    """Print a table as text; `nothing` where it has no rows."""
    if not rows:
        print(nothing)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))  # brackets are no markup
    # Into a file or a pipe a row is one line, however long: programs read it.
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    console.print(table)
