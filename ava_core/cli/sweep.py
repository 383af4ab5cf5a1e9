"""`ava sweep`: many trials of one configuration, chosen, compared, and ended early where they promise nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ava_core.cli.show import print_table
from ava_core.cli.step_flags import DEFAULT_WORK

if TYPE_CHECKING:
    from ava_core.sweeping.results import Results, TrialRow
    from ava_core.sweeping.sweep import SweepRequest

VIA = ("dvc", "katib")


def sweep(
    params: Annotated[Path, typer.Argument(help="File of parameters that trials vary.")] = Path("params.yaml"),
    space: Annotated[Path, typer.Option(help="File that says what is varied and measured: see docs/sweep.md.")] = ...,  # type: ignore[assignment]
    shards: Annotated[
        Path | None, typer.Option(help="Shards of all trials; without it they are made from --data.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the corpus, for shards that have to be made.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for trials and results; default: outputs/sweeps/NAME.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep; default: the file's.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials, instead of the file's.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="sqlite:///FILE or postgresql://USER@HOST/DB that workers share; default: OUTPUT/sweep.db."),
    ] = None,
    max_failures: Annotated[int, typer.Option(min=0, help="Trials that may fail before the sweep ends.")] = 3,
    results: Annotated[
        bool, typer.Option("--results", help="Run nothing: show the trials so far, with --via dvc its experiments.")
    ] = False,
    via: Annotated[
        str | None, typer.Option(help="Instead of running: `dvc` queues experiments, `katib` prints its Experiment.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="With --via katib: image of the trials.")] = None,
    config: Annotated[
        list[Path] | None, typer.Option(help="File whose values override the parameters. Repeatable.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key.path=value; overrides all files.")] = None,
    work: Annotated[Path, typer.Option(help="Work folder.", envvar="AVA_WORK")] = DEFAULT_WORK,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.", envvar="AVA_LOG_LEVEL")] = "info",
) -> None:
    """Run trials of a configuration over a space of settings."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    from ava_core.errors import ConfigError
    from ava_core.runtime import logs
    from ava_core.sweeping.checks import Base, check
    from ava_core.sweeping.space import read_space

    if via is not None and via not in VIA:
        raise ConfigError(f"--via {via}: must be one of {', '.join(VIA)}")
    if log_level not in logs.LEVELS:
        raise ConfigError(f"--log-level {log_level}: must be one of {', '.join(logs.LEVELS)}")
    read = read_space(space)
    base = Base(params=params, configs=tuple(config or ()), overrides=tuple(set_ or ()), space=space)
    checked = check(read, base, trials)
    called = _require_name(name or read.name or space.stem)
    if via == "katib":
        if results:
            raise ConfigError("--results: what came of an Experiment is shown by Katib: `kubectl get experiment NAME`")
        from ava_core.sweeping.katib import experiment

        print(experiment(called, base, checked, image=image, shards=shards, max_failures=max_failures), end="")
        return
    if via == "dvc" and not results:
        from ava_core.sweeping.dvc import queue

        logs.configure(log_level)
        queue(called, base, checked)
        return
    _require_optuna()
    from ava_core.sweeping.storage import require_storage
    from ava_core.sweeping.sweep import SweepRequest, keep_results, open_study, run_sweep, write_results

    folder = (output or Path("outputs/sweeps") / called).absolute()
    if checked.plan.preprocess and shards is not None:
        raise ConfigError(f"--shards {shards}: this sweep's trials make shards of their own: give --data instead")
    request = SweepRequest(
        name=called,
        base=base,
        checked=checked,
        storage=require_storage(storage or f"sqlite:///{folder / 'sweep.db'}"),
        folder=folder,
        work=work.absolute(),
        shards=shards.absolute() if shards else None,
        data=data.absolute() if data else None,
        max_failures=max_failures,
    )
    logs.configure(log_level, None if results else folder / "sweep.log")
    if via == "dvc":
        from ava_core.sweeping.dvc_results import gather_experiments

        found = keep_results(gather_experiments(called, base, checked), request)
    else:
        found = write_results(open_study(request), request) if results else run_sweep(request)
    _print(found, request)


def _require_name(name: str) -> str:
    import re

    from ava_core.errors import ConfigError

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
        raise ConfigError(f"--name {name}: must be letters, digits, `_`, `.` and `-`, at most 63")
    return name


def _require_optuna() -> None:
    from importlib.util import find_spec

    from ava_core.errors import ConfigError

    if find_spec("optuna") is None:
        raise ConfigError("ava sweep: needs Optuna: pip install 'ava-moe[sweep]'")


def _print(results: Results, request: SweepRequest) -> None:
    names = [goal.name for goal in results.objectives]
    header = ("trial", "state", *names, *results.keys, "steps", "seconds")
    print_table(header, [_columns(row, names, results.keys) for row in results.rows], "no trials yet")
    for row in results.rows:
        if row.reason:
            print(f"trial {row.number}: {row.reason}")
    counts = ", ".join(f"{count} {state}" for state, count in results.counts().items())
    print(f"\n{len(results.rows)} of {results.trials} trials: {counts or 'none'}")
    if results.importances:
        shares = sorted(results.importances.items(), key=lambda item: -item[1])
        print(f"importance     {', '.join(f'{key} {share:.0%}' for key, share in shares)}")
    if len(names) > 1:
        front = [str(row.number) for row in results.rows if row.on_front]
        print(f"Pareto front   trials {', '.join(front)}")
    if results.best:
        print(f"best settings  {request.folder / 'best.yaml'}")
    print(f"page           {(request.folder / 'sweep.html').as_uri()}")


def _columns(row: TrialRow, names: list[str], keys: object) -> tuple[str, ...]:
    from ava_core.sweeping.charts import text_of

    values = [f"{row.values[name]:.5g}" if name in row.values else "" for name in names]
    settings = [text_of(row.settings[key]) if row.settings else "" for key in keys]  # type: ignore[attr-defined]
    steps = "" if row.steps is None else f"{row.steps:,}"
    return (str(row.number), row.state, *values, *settings, steps, "" if row.seconds is None else f"{row.seconds:.1f}")
